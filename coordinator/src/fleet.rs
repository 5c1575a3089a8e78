//! The fleet: what all hosts last said, folded. Pure: the time of receipt comes in with each inventory.
//!
//! ```text
//!   heartbeat + time of receipt ──heard──▶ Fleet ──▶ hosts (online?), VMs (which host owns it?)
//!   monotonic clock ──────────────silence─▶ hosts that went offline
//! ```
//!
//! Whether a host is online is decided by the coordinator's monotonic clock alone: a wall clock that jumps, here or at
//! the host, takes nobody offline. Which host owns a VM follows from the hosts' own records (`owned`, generation); the
//! fleet only reads them and never decides.

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_shared::bus::{HostView, VmView};
use sterna_shared::host::{HEARTBEAT_SILENCE_SECONDS_MAX, Inventory, MovesInHand, VmReport};
use sterna_shared::id::{Epoch, HostId, VmId};
use sterna_shared::time::Timestamp;

/// The most hosts that one fleet takes; inventories of further ones are left out.
pub const HOSTS_MAX: usize = 4096;
const SILENCE_MAX: Duration = Duration::from_secs(HEARTBEAT_SILENCE_SECONDS_MAX);

/// All hosts and what they have.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    hosts: BTreeMap<HostId, Member>,
}

/// One host as the fleet knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// What its agent last said.
    pub inventory: Inventory,
    /// Whether it was heard of within [`HEARTBEAT_SILENCE_SECONDS_MAX`].
    pub online: bool,
    /// When it was last heard of, by the coordinator's wall clock; for people.
    pub heard_at: Timestamp,
    /// The same by the monotonic clock; none for what an earlier coordinator heard.
    heard_clock: Option<Duration>,
}

/// What an inventory changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The host is new, or was offline: whatever it journalled meanwhile may be unknown here.
    CameOnline,
    /// It says something new.
    Changed,
    /// It says the same, at a later time.
    Same,
    /// The fleet has [`HOSTS_MAX`] hosts already.
    TooMany,
}

/// Why a text names no one VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No host reports it.
    #[error("no host reports a VM {text:?}")]
    Unknown {
        /// What was asked for.
        text: String,
    },
    /// Several VMs have that name.
    #[error("{} VMs have the name {text:?}", ids.len())]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// Their ids.
        ids: Vec<VmId>,
    },
}

impl Fleet {
    /// Takes in what an earlier coordinator left about a host. It counts as offline until it is heard of.
    pub fn remember(&mut self, view: HostView) {
        if self.hosts.len() < HOSTS_MAX {
            let HostView { inventory, heard_at, .. } = view;
            self.hosts.entry(inventory.host.clone()).or_insert(Member {
                inventory,
                online: false,
                heard_at,
                heard_clock: None,
            });
        }
    }

    /// Takes an inventory in, received at `at` of the wall clock and `clock` of the monotonic one.
    pub fn heard(&mut self, inventory: Inventory, at: Timestamp, clock: Duration) -> Heard {
        let host = inventory.host.clone();
        let known = self.hosts.len();
        let fresh = Member { inventory, online: true, heard_at: at, heard_clock: Some(clock) };
        match self.hosts.get_mut(&host) {
            Some(member) => {
                let heard = match (member.online, says_the_same(&member.inventory, &fresh.inventory)) {
                    (false, _) => Heard::CameOnline,
                    (true, true) => Heard::Same,
                    (true, false) => Heard::Changed,
                };
                *member = fresh;
                heard
            }
            None if known >= HOSTS_MAX => Heard::TooMany,
            None => {
                self.hosts.insert(host, fresh);
                Heard::CameOnline
            }
        }
    }

    /// Marks the hosts offline that have been silent for too long, and names them.
    pub fn silence(&mut self, clock: Duration) -> Vec<HostId> {
        let mut gone = Vec::new();
        for (host, member) in &mut self.hosts {
            let silent = member.heard_clock.is_none_or(|heard| clock.saturating_sub(heard) > SILENCE_MAX);
            if member.online && silent {
                member.online = false;
                gone.push(host.clone());
            }
        }
        gone
    }

    /// One host.
    #[must_use]
    pub fn host(&self, host: &HostId) -> Option<&Member> {
        self.hosts.get(host)
    }

    /// All hosts, by name.
    pub fn hosts(&self) -> impl Iterator<Item = &Member> {
        self.hosts.values()
    }

    /// Whether every host that is known was heard of lately: only then does what none of them says tell anything.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.hosts.is_empty() && self.hosts.values().all(|member| member.online)
    }

    /// The highest epoch any agent has accepted: a new leader's must be above it.
    #[must_use]
    pub fn epoch_max(&self) -> Epoch {
        self.hosts.values().map(|member| member.inventory.epoch).max().unwrap_or_default()
    }

    /// The host and report that speak for a VM: the owner of the highest generation; where no host owns it, the one
    /// with the highest generation.
    #[must_use]
    pub fn vm(&self, id: VmId) -> Option<(&Member, &VmReport)> {
        self.records(id).max_by_key(|(_, report)| (report.owned, report.generation))
    }

    /// Every host that has a record of the VM.
    pub fn records(&self, id: VmId) -> impl Iterator<Item = (&Member, &VmReport)> {
        self.hosts
            .values()
            .flat_map(|member| member.inventory.vms.iter().map(move |report| (member, report)))
            .filter(move |(_, report)| report.id() == id)
    }

    /// All VMs, each once, by name and then id.
    #[must_use]
    pub fn vms(&self) -> Vec<(&Member, &VmReport)> {
        let mut speakers: BTreeMap<VmId, (&Member, &VmReport)> = BTreeMap::new();
        for member in self.hosts.values() {
            for report in &member.inventory.vms {
                let speaker = speakers.entry(report.id()).or_insert((member, report));
                if (report.owned, report.generation) >= (speaker.1.owned, speaker.1.generation) {
                    *speaker = (member, report);
                }
            }
        }
        let mut vms: Vec<_> = speakers.into_values().collect();
        vms.sort_by(|a, b| a.1.spec.name.cmp(&b.1.spec.name));
        vms
    }

    /// The VM that a name or an id means.
    ///
    /// # Errors
    /// [`FindError`] where there is none, or several.
    pub fn find(&self, text: &str) -> Result<(&Member, &VmReport), FindError> {
        let shown = || text.chars().take(64).collect::<String>();
        if let Some(found) = text.parse().ok().and_then(|id| self.vm(id)) {
            return Ok(found);
        }
        let named: Vec<_> = self.vms().into_iter().filter(|(_, report)| report.spec.name.as_str() == text).collect();
        match named[..] {
            [found] => Ok(found),
            [] => Err(FindError::Unknown { text: shown() }),
            _ => Err(FindError::Ambiguous { text: shown(), ids: named.iter().map(|(_, vm)| vm.id()).collect() }),
        }
    }
}

impl Member {
    /// As operators see it, but for the moves that it has in hand: of jobs the fleet knows nothing.
    #[must_use]
    pub fn view(&self) -> HostView {
        HostView {
            inventory: self.inventory.clone(),
            online: self.online,
            heard_at: self.heard_at,
            moves: MovesInHand::default(),
        }
    }
}

/// A VM as operators see it.
#[must_use]
pub fn vm_view(member: &Member, report: &VmReport) -> VmView {
    VmView { host: member.inventory.host.clone(), report: report.clone() }
}

/// Whether two inventories differ in nothing but their time.
fn says_the_same(a: &Inventory, b: &Inventory) -> bool {
    let Inventory {
        host,
        at: _,
        version,
        addresses,
        hypervisor,
        cpu,
        memory_total,
        memory_free,
        pools,
        bridges,
        boot_files,
        certificate,
        limits,
        limits_set,
        epoch,
        vms,
        partials,
        memory_reserved,
        planned,
        replicas,
        adapts,
        probe_commands,
    } = a;
    (host, version, addresses, hypervisor, cpu, memory_total, memory_free)
        == (&b.host, &b.version, &b.addresses, &b.hypervisor, &b.cpu, &b.memory_total, &b.memory_free)
        && (pools, bridges, boot_files, certificate, limits, limits_set)
            == (&b.pools, &b.bridges, &b.boot_files, &b.certificate, &b.limits, &b.limits_set)
        && (epoch, vms, partials, probe_commands) == (&b.epoch, &b.vms, &b.partials, &b.probe_commands)
        && (memory_reserved, planned, replicas, adapts) == (&b.memory_reserved, &b.planned, &b.replicas, &b.adapts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::example;
    use sterna_shared::host::VmState;
    use sterna_shared::id::Generation;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_silent_host_goes_offline_and_comes_back() {
        let mut fleet = Fleet::default();
        let inventory = example::inventory("alpha");
        assert_eq!(fleet.heard(inventory.clone(), example::now(), seconds(0)), Heard::CameOnline);
        assert_eq!(fleet.heard(inventory.clone(), example::now(), seconds(2)), Heard::Same);
        assert_eq!(fleet.silence(seconds(12)), vec![]);
        assert_eq!(fleet.silence(seconds(13)), vec![inventory.host.clone()]);
        assert_eq!(fleet.silence(seconds(14)), vec![], "told once");
        assert_eq!(fleet.heard(inventory, example::now(), seconds(15)), Heard::CameOnline);
    }

    #[test]
    fn what_was_remembered_is_offline_until_heard() {
        let mut fleet = Fleet::default();
        let inventory = example::inventory("alpha");
        let moves = MovesInHand::default();
        fleet.remember(HostView { inventory: inventory.clone(), online: true, heard_at: example::now(), moves });
        assert!(!fleet.host(&inventory.host).expect("there").online);
        assert_eq!(fleet.heard(inventory, example::now(), seconds(1)), Heard::CameOnline);
    }

    #[test]
    fn the_owner_of_the_highest_generation_speaks_for_a_vm() {
        let mut fleet = Fleet::default();
        let spec = example::vm("web");
        let mut report = |host: &str, owned, generation| {
            let mut inventory = example::inventory(host);
            inventory.vms = vec![VmReport {
                spec: spec.clone(),
                state: VmState::Running,
                generation: Generation(generation),
                owned,
                job: None,
                unchanged_since: None,
            }];
            fleet.heard(inventory, example::now(), seconds(0));
            fleet.find("web").map(|(member, _)| member.inventory.host.to_string())
        };
        assert_eq!(report("alpha", true, 3), Ok("alpha".into()));
        assert_eq!(report("beta", false, 4), Ok("alpha".into()), "who may run it comes before who has a newer record");
        assert_eq!(report("beta", true, 4), Ok("beta".into()));
        assert_eq!(report("alpha", false, 4), Ok("beta".into()));
    }

    #[test]
    fn a_name_of_two_vms_is_an_error_and_an_id_is_not() {
        let mut fleet = Fleet::default();
        let (one, mut two) = (example::vm("web"), example::vm("web"));
        two.id = "0197c0de-0000-7000-8000-0000000000ff".parse().expect("a UUID");
        for (host, spec) in [("alpha", &one), ("beta", &two)] {
            let mut inventory = example::inventory(host);
            inventory.vms = vec![example::report(spec)];
            fleet.heard(inventory, example::now(), seconds(0));
        }
        assert!(matches!(fleet.find("web"), Err(FindError::Ambiguous { ids, .. }) if ids.len() == 2));
        assert_eq!(fleet.find(&two.id.to_string()).map(|(_, vm)| vm.id()), Ok(two.id));
        assert!(matches!(fleet.find("nobody"), Err(FindError::Unknown { .. })));
    }
}
