//! Resource names: the one place where they are made and read.
//!
//! ```text
//!   projects/sterna/locations/TARGET/sources/SOURCE/migratingVms/VM                             a VM's replication
//!   projects/sterna/locations/TARGET/sources/SOURCE/migratingVms/VM/cloneJobs/JOB               a clone of it
//!   projects/sterna/locations/TARGET/sources/SOURCE/migratingVms/VM/cutoverJobs/JOB             a cutover of it
//!   projects/sterna/locations/TARGET/sources/SOURCE/migratingVms/VM/replicationCycles/JOB       a cycle of it
//!   projects/sterna/locations/TARGET/groups/GROUP                                               a group of jobs
//!   projects/sterna/locations/TARGET/operations/JOB                                             the making of a job
//!   projects/sterna/locations/TARGET/operations/finalize-JOB                                    the end of a replication
//! ```
//!
//! The location is the host that has the replica, the source that which runs the VM. Both are those that the replication was
//! submitted with, so that a name stays as it was also where the VM is moved afterwards. All parts but the group are identifiers
//! of Sterna's and stand as they are; a group may have any text for a name, of which whatever is not plain is written as `%XX`.

use std::fmt;
use std::str::FromStr;

use crate::id::{HostId, InvalidId, JobId, VmName};
use crate::job::{JobStatus, Policy};

use super::wellknown::text;

/// The project that all is in: Sterna has no others.
pub const PROJECT: &str = "sterna";

/// What stands before the job of an operation that finalizes a replication.
const FINALIZE: &str = "finalize-";

/// The longest text that is read as a name, in bytes. No name is as long.
const NAME_LENGTH_MAX: usize = 1024;

/// The name of a VM's replication.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MigratingVmName {
    /// The host that has the replica.
    pub location: HostId,
    /// The host that has the VM.
    pub source: HostId,
    /// The VM.
    pub vm: VmName,
}

/// The name of a clone job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloneJobName {
    /// The replication that it is a clone of.
    pub vm: MigratingVmName,
    /// The job.
    pub job: JobId,
}

/// The name of a cutover job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CutoverJobName {
    /// The replication that is cut over.
    pub vm: MigratingVmName,
    /// The job.
    pub job: JobId,
}

/// The name of a replication cycle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicationCycleName {
    /// The replication that it is a cycle of.
    pub vm: MigratingVmName,
    /// The cycle, a job of its own.
    pub job: JobId,
}

/// The name of a group of jobs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName {
    /// The host that has the replicas.
    pub location: HostId,
    /// The group, as its jobs' policies have it.
    pub group: String,
}

/// The name of an operation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationName {
    /// The host that has the replica.
    pub location: HostId,
    /// The job that it makes, or ends.
    pub job: JobId,
    /// Whether it finalizes a replication.
    pub finalizes: bool,
}

/// What a list is of: all that is in a location, of a source, of a replicated VM; of any where it is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parent {
    /// The host that has the replicas.
    pub location: Option<HostId>,
    /// The host that has the VMs.
    pub source: Option<HostId>,
    /// The VM.
    pub vm: Option<VmName>,
}

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// It is put together in another way.
    #[error("{text:?} is not the name of a {what}; give one such as {form}")]
    Form {
        /// What it should name.
        what: &'static str,
        /// How such a name is put together.
        form: &'static str,
        /// The first characters of the text.
        text: String,
    },
    /// A part of it is no identifier.
    #[error("the name of a {what} has a part that cannot be: {fault}")]
    Part {
        /// What it should name.
        what: &'static str,
        /// What is wrong with the part.
        fault: InvalidId,
    },
}

text! {
    MigratingVmName: "^projects/sterna/locations/[^/]+/sources/[^/]+/migratingVms/[^/]+$",
    CloneJobName: "^projects/sterna/locations/[^/]+/sources/[^/]+/migratingVms/[^/]+/cloneJobs/[^/]+$",
    CutoverJobName: "^projects/sterna/locations/[^/]+/sources/[^/]+/migratingVms/[^/]+/cutoverJobs/[^/]+$",
    ReplicationCycleName: "^projects/sterna/locations/[^/]+/sources/[^/]+/migratingVms/[^/]+/replicationCycles/[^/]+$",
    GroupName: "^projects/sterna/locations/[^/]+/groups/[^/]+$",
    OperationName: "^projects/sterna/locations/[^/]+/operations/[^/]+$",
}

impl MigratingVmName {
    /// The name of what a job replicates.
    #[must_use]
    pub fn of(replication: &JobStatus) -> Self {
        let plan = &replication.plan;
        Self { location: plan.target.id.clone(), source: plan.source.id.clone(), vm: plan.vm.name.clone() }
    }

    /// The name of a clone of it.
    #[must_use]
    pub fn clone_job(&self, job: JobId) -> CloneJobName {
        CloneJobName { vm: self.clone(), job }
    }

    /// The name of a cutover of it.
    #[must_use]
    pub fn cutover_job(&self, job: JobId) -> CutoverJobName {
        CutoverJobName { vm: self.clone(), job }
    }

    /// The name of a cycle of it.
    #[must_use]
    pub fn cycle(&self, job: JobId) -> ReplicationCycleName {
        ReplicationCycleName { vm: self.clone(), job }
    }

    /// The name of the operation that made a job at its host.
    #[must_use]
    pub fn operation(&self, job: JobId) -> OperationName {
        OperationName { location: self.location.clone(), job, finalizes: false }
    }

    /// The name of the operation that finalizes it, whose job that is.
    #[must_use]
    pub fn finalization(&self, job: JobId) -> OperationName {
        OperationName { finalizes: true, ..self.operation(job) }
    }

    /// The name of the group that a job of such a policy is in, if any.
    #[must_use]
    pub fn group(&self, policy: &Policy) -> Option<GroupName> {
        let group = policy.group.clone()?;
        Some(GroupName { location: self.location.clone(), group })
    }
}

impl fmt::Display for MigratingVmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { location, source, vm } = self;
        write!(f, "projects/{PROJECT}/locations/{location}/sources/{source}/migratingVms/{vm}")
    }
}

impl fmt::Display for CloneJobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/cloneJobs/{}", self.vm, self.job)
    }
}

impl fmt::Display for CutoverJobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/cutoverJobs/{}", self.vm, self.job)
    }
}

impl fmt::Display for ReplicationCycleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/replicationCycles/{}", self.vm, self.job)
    }
}

impl fmt::Display for OperationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.finalizes { FINALIZE } else { "" };
        write!(f, "projects/{PROJECT}/locations/{}/operations/{verb}{}", self.location, self.job)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "projects/{PROJECT}/locations/{}/groups/", self.location)?;
        for byte in self.group.bytes() {
            if is_plain(byte) { write!(f, "{}", char::from(byte))? } else { write!(f, "%{byte:02X}")? }
        }
        Ok(())
    }
}

/// What a segment of a path has as it is (RFC 3986, *unreserved*). A point is not among them here, so that no group is `..`.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~')
}

/// The texts that stand at the `*` of a form, where the text is put together like it.
fn parts<'a, const N: usize>(
    text: &'a str,
    what: &'static str,
    form: &'static str,
    pattern: &str,
) -> Result<[&'a str; N], InvalidName> {
    let invalid = || InvalidName::Form { what, form, text: text.chars().take(128).collect() };
    if text.len() > NAME_LENGTH_MAX || text.split('/').count() != pattern.split('/').count() {
        return Err(invalid());
    }
    let mut parts = Vec::new();
    for (part, wanted) in text.split('/').zip(pattern.split('/')) {
        match wanted {
            "*" => parts.push(part),
            _ if part == wanted => {}
            _ => return Err(invalid()),
        }
    }
    parts.try_into().map_err(|_| invalid())
}

impl FromStr for MigratingVmName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let what = "replicated VM";
        let form = "projects/sterna/locations/TARGET/sources/SOURCE/migratingVms/VM";
        let [location, source, vm] = parts(text, what, form, "projects/sterna/locations/*/sources/*/migratingVms/*")?;
        let part = |fault| InvalidName::Part { what, fault };
        Ok(Self {
            location: location.parse().map_err(part)?,
            source: source.parse().map_err(part)?,
            vm: vm.parse().map_err(part)?,
        })
    }
}

impl Parent {
    /// Reads a location, of which groups and operations are. In the place of each part `-` stands for any.
    ///
    /// # Errors
    /// [`InvalidName`], which says what it should be like.
    pub fn of_location(text: &str) -> Result<Self, InvalidName> {
        let what = "location";
        let [location] = parts(text, what, "projects/sterna/locations/TARGET", "projects/sterna/locations/*")?;
        Ok(Self { location: any_or(location, what)?, ..Self::default() })
    }

    /// Reads a source, of which replicated VMs are.
    ///
    /// # Errors
    /// As [`Self::of_location`].
    pub fn of_source(text: &str) -> Result<Self, InvalidName> {
        let (what, form) = ("source", "projects/sterna/locations/TARGET/sources/SOURCE");
        let [location, source] = parts(text, what, form, "projects/sterna/locations/*/sources/*")?;
        Ok(Self { location: any_or(location, what)?, source: any_or(source, what)?, vm: None })
    }

    /// Reads a replicated VM, of which cycles, clone jobs and cutover jobs are.
    ///
    /// # Errors
    /// As [`Self::of_location`].
    pub fn of_vm(text: &str) -> Result<Self, InvalidName> {
        let what = "replicated VM";
        let form = "projects/sterna/locations/TARGET/sources/SOURCE/migratingVms/VM";
        let [location, source, vm] = parts(text, what, form, "projects/sterna/locations/*/sources/*/migratingVms/*")?;
        Ok(Self { location: any_or(location, what)?, source: any_or(source, what)?, vm: any_or(vm, what)? })
    }

    /// Whether that is in a location that is meant.
    #[must_use]
    pub fn has_location(&self, location: &HostId) -> bool {
        self.location.as_ref().is_none_or(|meant| meant == location)
    }

    /// Whether a replicated VM is meant.
    #[must_use]
    pub fn has(&self, name: &MigratingVmName) -> bool {
        self.has_location(&name.location)
            && self.source.as_ref().is_none_or(|meant| *meant == name.source)
            && self.vm.as_ref().is_none_or(|meant| *meant == name.vm)
    }
}

/// A part of a name in which `-` stands for any, of what has such a part.
fn any_or<T: FromStr<Err = InvalidId>>(part: &str, what: &'static str) -> Result<Option<T>, InvalidName> {
    if part == "-" {
        return Ok(None);
    }
    part.parse().map(Some).map_err(|fault| InvalidName::Part { what, fault })
}

/// A name that is that of a replicated VM, and two parts more.
fn child(
    text: &str,
    collection: &str,
    what: &'static str,
    form: &'static str,
) -> Result<(MigratingVmName, JobId), InvalidName> {
    let invalid = || InvalidName::Form { what, form, text: text.chars().take(128).collect() };
    let (rest, job) = text.rsplit_once('/').ok_or_else(invalid)?;
    let (vm, found) = rest.rsplit_once('/').ok_or_else(invalid)?;
    if found != collection {
        return Err(invalid());
    }
    let vm = vm.parse().map_err(|fault| match fault {
        InvalidName::Part { fault, .. } => InvalidName::Part { what, fault },
        InvalidName::Form { .. } => invalid(),
    })?;
    Ok((vm, job.parse().map_err(|fault| InvalidName::Part { what, fault })?))
}

impl FromStr for CloneJobName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let form = "projects/sterna/locations/TARGET/sources/SOURCE/migratingVms/VM/cloneJobs/JOB";
        child(text, "cloneJobs", "clone job", form).map(|(vm, job)| Self { vm, job })
    }
}

impl FromStr for CutoverJobName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let form = "projects/sterna/locations/TARGET/sources/SOURCE/migratingVms/VM/cutoverJobs/JOB";
        child(text, "cutoverJobs", "cutover job", form).map(|(vm, job)| Self { vm, job })
    }
}

impl FromStr for ReplicationCycleName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let form = "projects/sterna/locations/TARGET/sources/SOURCE/migratingVms/VM/replicationCycles/JOB";
        child(text, "replicationCycles", "replication cycle", form).map(|(vm, job)| Self { vm, job })
    }
}

impl FromStr for GroupName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (what, form) = ("group", "projects/sterna/locations/TARGET/groups/GROUP");
        let [location, group] = parts(text, what, form, "projects/sterna/locations/*/groups/*")?;
        let location = location.parse().map_err(|fault| InvalidName::Part { what, fault })?;
        let name = unescape(group).map(|group| Self { location, group });
        // One group has one spelling, and a name.
        name.filter(|name| !name.group.is_empty() && name.to_string() == text).ok_or_else(|| InvalidName::Form {
            what,
            form,
            text: text.chars().take(128).collect(),
        })
    }
}

impl FromStr for OperationName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (what, form) = ("operation", "projects/sterna/locations/TARGET/operations/JOB");
        let [location, operation] = parts(text, what, form, "projects/sterna/locations/*/operations/*")?;
        let part = |fault| InvalidName::Part { what, fault };
        let (job, finalizes) = operation.strip_prefix(FINALIZE).map_or((operation, false), |job| (job, true));
        Ok(Self { location: location.parse().map_err(part)?, job: job.parse().map_err(part)?, finalizes })
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' { hex(rest.next()?)? << 4 | hex(rest.next()?)? } else { byte });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "0197c0de-0000-7000-8000-000000000101";

    #[test]
    fn an_operation_is_found_by_its_name() {
        for (operation, finalizes) in [(JOB.to_owned(), false), (format!("finalize-{JOB}"), true)] {
            let text = format!("projects/sterna/locations/beta/operations/{operation}");
            let name: OperationName = text.parse().expect("a name");
            assert_eq!((name.to_string(), name.finalizes), (text, finalizes));
        }
        for wrong in ["", "beta/operations/", "beta/operations/start-7", "beta/operations/finalize-", "-/operations/x"]
        {
            assert!(format!("projects/sterna/locations/{wrong}").parse::<OperationName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_parent_means_what_it_names_and_any_where_it_has_a_dash() {
        let name: MigratingVmName =
            "projects/sterna/locations/beta/sources/alpha/migratingVms/web".parse().expect("one");
        for (location, source, vm, has) in [
            ("beta", "alpha", "web", true),
            ("-", "-", "-", true),
            ("beta", "-", "web", true),
            ("gamma", "-", "-", false),
            ("-", "gamma", "-", false),
            ("-", "-", "db", false),
        ] {
            let text = format!("projects/sterna/locations/{location}/sources/{source}");
            let whole = Parent::of_vm(&format!("{text}/migratingVms/{vm}")).expect("a parent");
            assert_eq!(whole.has(&name), has, "{whole:?}");
            let source = Parent::of_source(&text).expect("a parent");
            assert_eq!((&source.location, &source.source, source.vm), (&whole.location, &whole.source, None));
            let location = Parent::of_location(&format!("projects/sterna/locations/{location}")).expect("a parent");
            assert_eq!((location.location, location.source), (whole.location, None));
        }
        for wrong in
            ["", "-", "projects/-/locations/beta", "projects/sterna/locations/..", "projects/sterna/locations/"]
        {
            let fault = Parent::of_location(wrong).expect_err(wrong).to_string();
            assert!(fault.contains("location"), "{fault}");
        }
        assert!(Parent::of_source("projects/sterna/locations/beta").is_err());
        assert!(Parent::of_vm("projects/sterna/locations/beta/sources/alpha").is_err());
    }
}
