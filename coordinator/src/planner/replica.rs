//! What jobs on a replica have in common, whatever they do with it: which replica is meant, and a plan for the one host that has
//! it. The replicated VM's own host has no part in them.

use std::collections::BTreeSet;

use sterna_shared::id::{Generation, VmId};
use sterna_shared::job::{Host, JobKind, MoveMode, MoveRequest, Plan, Refusal, RefusalCode};
use sterna_shared::replica::Replica;
use sterna_shared::vm::VmSpec;

use super::check::refusal;
use super::{BLACKOUT_DEFAULT_MS, LANES_DEFAULT, Seeds};
use crate::fleet::{Fleet, Member};

/// The replica that a request means; where several hosts have one, that with the latest snapshot.
pub(super) fn find<'a>(fleet: &'a Fleet, request: &MoveRequest) -> Result<(&'a Member, &'a Replica), Refusal> {
    let text = request.vm.as_str();
    let id: Option<VmId> = text.parse().ok();
    let at = |member: &&Member| request.target.as_ref().is_none_or(|host| *host == member.inventory.host);
    let of = |replica: &Replica| replica.vm.name.as_str() == text || Some(replica.vm.id) == id;
    let replicas =
        fleet.hosts().filter(at).flat_map(|member| member.inventory.replicas.iter().map(move |one| (member, one)));
    let found: Vec<_> = replicas.filter(|(_, replica)| of(replica)).collect();
    let ids: BTreeSet<VmId> = found.iter().map(|(_, replica)| replica.vm.id).collect();
    if ids.len() > 1 {
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        return Err(refusal(
            RefusalCode::AmbiguousVm,
            format!("there are replicas of {} VMs with the name {text:?}", ids.len()),
            format!("give the VM's id: {}", ids.join(" or ")),
        ));
    }
    let latest = |replica: &Replica| replica.latest().map(|snapshot| snapshot.taken_at);
    found.into_iter().max_by_key(|(_, replica)| latest(replica)).ok_or_else(|| match &request.target {
        Some(host) if fleet.host(host).is_none() => {
            refusal(RefusalCode::UnknownHost, format!("no host {host} was ever heard of"), "see `sterna host list`")
        }
        target => refusal(
            RefusalCode::ReplicaUnknown,
            match target {
                Some(host) => format!("host {host} has no replica of a VM {text:?}"),
                None => format!("no host has a replica of a VM {text:?}"),
            },
            "see `sterna replicate list`; a VM is replicated by `sterna replicate add`",
        ),
    })
}

/// The plan of such a job about a VM: no disk crosses, and nobody's right to run it changes.
pub(super) fn plan(member: &Member, kind: JobKind, vm: VmSpec, request: &MoveRequest, seeds: Seeds) -> Plan {
    let inventory = &member.inventory;
    let host = Host { id: inventory.host.clone(), addresses: inventory.addresses.clone() };
    Plan {
        job: seeds.job,
        planned_at: seeds.now,
        attempt: seeds.attempt,
        kind,
        mode: MoveMode::Cold,
        steps: Plan::steps_of(kind, MoveMode::Cold, false),
        vm: vm.clone(),
        vm_at_target: vm,
        source: host.clone(),
        target: host,
        disks: Vec::new(),
        generation: Generation(0),
        token: seeds.token,
        lanes: LANES_DEFAULT,
        bandwidth: request.bandwidth,
        blackout_max_ms: BLACKOUT_DEFAULT_MS,
        settings: request.settings.clone(),
        planned: None,
        hold_seconds: None,
        retention: None,
        clone: None,
    }
}
