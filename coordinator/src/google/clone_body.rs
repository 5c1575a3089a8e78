//! A clone that is asked for in Google's form: a `CloneJob` in JSON, as it is the body of `cloneJobs.create`.
//!
//! What has a meaning here becomes a part of the wish. What Google has and Sterna does not is left aside with a warning that
//! names it; anything else is an error that names it.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use sterna_shared::id::{BridgeName, HostId, HostName, InvalidId, JobId, VmId, VmName};
use sterna_shared::replica::{CloneWish, NetworkWish, SeedWish};
use sterna_shared::units::ByteCount;
use sterna_shared::view::google::{MachineType, PROJECT};
use sterna_shared::vm::Firmware;

use super::body::{BodyFault, Field, Fields, Kind, Node, aside, fault, read, taken};

/// What a `CloneJob` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CloneBody {
    /// `vmName`.
    pub(crate) name: Option<VmName>,
    /// `zone`: the host with the replica, where the clone is made.
    pub(crate) host: Option<HostId>,
    /// `machineType`.
    pub(crate) machine: Option<MachineType>,
    /// `bootOption`.
    pub(crate) firmware: Option<Firmware>,
    /// `secureBoot`.
    pub(crate) secure_boot: Option<bool>,
    /// `networkInterfaces`; none where there are none.
    pub(crate) network: Option<NetworkWish>,
    /// `labels`.
    pub(crate) labels: BTreeMap<String, String>,
    /// `hostname`.
    pub(crate) hostname: Option<HostName>,
    /// `requestId`: the job's id.
    pub(crate) request: Option<JobId>,
    /// What is left aside, and why.
    pub(crate) warnings: Vec<String>,
}

const NEWER: &str = "computeEngineTargetDetails";
const OF_DISKS: &str = "computeEngineDisksTargetDetails";
pub(super) const REQUEST: &str = "requestId";
/// The deprecated names of the same; the newer of them first.
const OLDER: [&str; 2] = ["computeEngineVmDetails", "targetDetails"];
pub(super) const TOLD: &str = "a job tells it, and nobody asks for it";

/// Those of a body.
const OF_BODY: &[Field] = &[
    taken(NEWER, Kind::Object),
    taken(OLDER[0], Kind::Object),
    taken(OLDER[1], Kind::Object),
    taken(OF_DISKS, Kind::Object),
    taken(REQUEST, Kind::Text),
];

/// Those that every job tells.
pub(super) const OF_JOB: &[Field] = &[
    aside("name", Kind::Text, TOLD),
    aside("createTime", Kind::Text, TOLD),
    aside("endTime", Kind::Text, TOLD),
    aside("state", Kind::Text, TOLD),
    aside("stateTime", Kind::Text, TOLD),
    aside("error", Kind::Object, TOLD),
    aside("steps", Kind::List, TOLD),
];

const BOOT: &str = "bootOption";
const AS_IT_BOOTS: &str = "a clone boots as the VM does";
const NO_LICENCE: &str = "Sterna sells no licences";

/// Those of a VM that is to be made, beside its name and its project, which the older form calls otherwise.
const OF_VM: &[Field] = &[
    taken("zone", Kind::Text),
    taken("machineType", Kind::Text),
    taken("networkInterfaces", Kind::List),
    taken("labels", Kind::Object),
    taken("hostname", Kind::Text),
    taken("secureBoot", Kind::Flag),
    taken(BOOT, Kind::Text),
    aside("machineTypeSeries", Kind::Text, "a host has one kind of processors"),
    aside("networkTags", Kind::List, "Sterna has no firewall"),
    aside("serviceAccount", Kind::Text, "a guest has no rights with Sterna"),
    aside("diskType", Kind::Text, "a pool is what its directory or volume group is; give --pool"),
    aside("licenseType", Kind::Text, NO_LICENCE),
    aside("appliedLicense", Kind::Object, NO_LICENCE),
    aside("additionalLicenses", Kind::List, NO_LICENCE),
    aside("computeScheduling", Kind::Object, "guests are not preempted"),
    aside("enableVtpm", Kind::Flag, "a specification has no TPM: not built yet"),
    aside("enableIntegrityMonitoring", Kind::Flag, "Sterna does not look into guests"),
    aside("metadata", Kind::Object, "there is no metadata server"),
    aside("bootConversion", Kind::Text, AS_IT_BOOTS),
    aside("encryption", Kind::Object, "images are not encrypted: not built yet"),
    aside("diskReplicaZones", Kind::List, "a disk is at one host"),
];

const ITS_OWN_ADDRESS: &str = "a guest gets its address by itself";

/// Those of an interface.
const OF_INTERFACE: &[Field] = &[
    taken("network", Kind::Text),
    aside("subnetwork", Kind::Text, "a bridge has none"),
    aside("internalIp", Kind::Text, ITS_OWN_ADDRESS),
    aside("externalIp", Kind::Text, ITS_OWN_ADDRESS),
    aside("networkTier", Kind::Text, ITS_OWN_ADDRESS),
];

impl FromStr for CloneBody {
    type Err = BodyFault;
    fn from_str(text: &str) -> Result<Self, BodyFault> {
        Self::of(&read(text)?, String::new())
    }
}

impl CloneBody {
    /// Reads a body, which is at that place of a request.
    pub(super) fn of(root: &Node, path: String) -> Result<Self, BodyFault> {
        let mut body = Self::default();
        let root = Fields::of(root, path, &[OF_BODY, OF_JOB], &mut body.warnings)?;
        if root.get(OF_DISKS).is_some() {
            let what = format!("a clone is a VM; disks without one are not built yet. Give {NEWER}");
            return Err(fault(&root.path(OF_DISKS), what));
        }
        body.request = read_request(&root)?;
        // The newest counts; what a job tells of itself has all of them.
        let mut details = [NEWER, OLDER[0], OLDER[1]].into_iter().filter(|name| root.get(name).is_some());
        let Some(chosen) = details.next() else {
            return Err(fault(&root.path(NEWER), "it is missing, and says what VM is to be made".to_owned()));
        };
        if chosen != NEWER {
            body.warnings.push(format!("{} is deprecated; give {NEWER}", root.path(chosen)));
        }
        let aside =
            |older| format!("{} is left aside: {chosen} counts, of which it is an older form", root.path(older));
        body.warnings.extend(details.map(aside));
        body.describe(root.get(chosen), chosen == NEWER, root.path(chosen))?;
        Ok(body)
    }

    /// Takes in what VM is to be made.
    fn describe(&mut self, details: Option<&Node>, is_newer: bool, path: String) -> Result<(), BodyFault> {
        let Some(details) = details else { return Ok(()) };
        let (name, project) = if is_newer { ("vmName", "project") } else { ("name", "targetProject") };
        let named = [taken(name, Kind::Text), taken(project, Kind::Text)];
        let fields = Fields::of(details, path, &[&named[..], OF_VM], &mut self.warnings)?;
        if fields.text(project).is_some_and(|text| text != PROJECT) {
            self.warnings.push(format!("{} is left aside: there is one project, {PROJECT}", fields.path(project)));
        }
        self.name = fields.parsed(name)?;
        self.host = fields.parsed("zone")?;
        self.machine = fields.parsed("machineType")?;
        self.hostname = fields.parsed("hostname")?;
        self.firmware = fields
            .text(BOOT)
            .map_or(Ok(None), |text| parse_boot(text, is_newer).map_err(|what| fault(&fields.path(BOOT), what)))?;
        self.secure_boot = fields.flag("secureBoot");
        if let Some(Node::List(interfaces)) = fields.get("networkInterfaces") {
            self.network = self.connect(interfaces, &fields.path("networkInterfaces"))?;
        }
        self.labels = fields.texts("labels")?;
        Ok(())
    }

    /// What all its interfaces are connected to.
    fn connect(&mut self, interfaces: &[Node], of: &str) -> Result<Option<NetworkWish>, BodyFault> {
        let mut bridges: BTreeSet<Option<BridgeName>> = BTreeSet::new();
        for (place, interface) in interfaces.iter().enumerate() {
            let fields = Fields::of(interface, format!("{of}[{place}]"), &[OF_INTERFACE], &mut self.warnings)?;
            bridges.insert(fields.parsed("network")?);
        }
        let mut bridges = bridges.into_iter();
        let first = bridges.next();
        if bridges.next().is_some() {
            let what = "the interfaces of a clone are connected to one bridge, or all to nothing; give one network, \
                        or leave them out for --network same";
            return Err(fault(of, what.to_owned()));
        }
        Ok(first.map(|bridge| bridge.map_or(NetworkWish::Isolated, NetworkWish::Bridge)))
    }
}

impl CloneBody {
    /// The VM that it asks for, with that id, of that one; isolated, and called after it, where nothing is said of that.
    ///
    /// # Errors
    /// That it cannot be called after it.
    pub(crate) fn wish(&self, vm: &str, id: VmId) -> Result<CloneWish, String> {
        Ok(CloneWish {
            id,
            name: self.name.clone().map_or_else(|| name_of(vm, "clone"), Ok)?,
            snapshot: None,
            pool: None,
            vcpus: self.machine.map(|machine| machine.vcpus),
            memory: self.machine.map(|machine| ByteCount::mebibytes(machine.memory_mib)),
            firmware: self.firmware,
            secure_boot: self.secure_boot,
            network: self.network.clone().unwrap_or_default(),
            full: false,
            start: false,
            skip_os_adaptation: false,
            hostname: self.hostname.clone(),
            seed: SeedWish::Auto,
            rehearsal: None,
        })
    }
}

/// What a `bootOption` says, of which the older form has shorter names; none where it leaves it open.
fn parse_boot(text: &str, is_newer: bool) -> Result<Option<Firmware>, String> {
    let prefix = if is_newer { "COMPUTE_ENGINE_BOOT_OPTION_" } else { "" };
    let unspecified = if is_newer { "COMPUTE_ENGINE_BOOT_OPTION_UNSPECIFIED" } else { "BOOT_OPTION_UNSPECIFIED" };
    match text.strip_prefix(prefix) {
        _ if text == unspecified => Ok(None),
        Some("EFI") => Ok(Some(Firmware::Uefi)),
        Some("BIOS") => Ok(Some(Firmware::Bios)),
        _ => Err(format!("there is no such option; give {prefix}EFI or {prefix}BIOS, or leave it out")),
    }
}

/// The name of what is made of a VM where none is given.
///
/// # Errors
/// That it is too long, or else no name.
pub(crate) fn name_of(vm: &str, what: &str) -> Result<VmName, String> {
    let name = format!("{vm}-{what}");
    name.parse().map_err(|error| format!("the clone cannot be called {name}: {error}"))
}

/// The `requestId` of an object that may have one.
pub(super) fn read_request(fields: &Fields<'_>) -> Result<Option<JobId>, BodyFault> {
    let Some(text) = fields.text(REQUEST) else { return Ok(None) };
    parse_request(text).map(Some).map_err(|what| fault(&fields.path(REQUEST), what))
}

/// The id of a job as Google's `requestId` has to be: a UUID, and not all zeroes.
pub(crate) fn parse_request(text: &str) -> Result<JobId, String> {
    let job: JobId = text.parse().map_err(|error: InvalidId| error.to_string())?;
    if job.uuid().is_nil() {
        Err("a UUID of zeroes tells no two requests apart; give another".to_owned())
    } else {
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::google::body::shown;

    fn read(body: &serde_json::Value) -> CloneBody {
        body.to_string().parse().expect("a body")
    }

    #[track_caller]
    fn fails(text: &str, field: &str, what: &str) {
        let fault = text.parse::<CloneBody>().expect_err(text).to_string();
        assert!(fault.starts_with(&format!("{field}: ")) && fault.contains(what), "{fault}");
        assert!(fault.len() < 1024, "{} bytes", fault.len());
    }

    #[test]
    fn what_has_a_meaning_here_is_taken() {
        let body = read(&serde_json::json!({
            "requestId": "0197c0de-0000-7000-8000-000000000101",
            "computeEngineTargetDetails": {
                "vmName": "trial",
                "project": "sterna",
                "zone": "beta",
                "machineType": "custom-2-1024",
                "labels": { "for": "tests", "new": "" },
                "hostname": "shop.example",
                "secureBoot": true,
                "bootOption": "COMPUTE_ENGINE_BOOT_OPTION_EFI",
                "networkInterfaces": [{ "network": "lan" }, { "network": "lan", "subnetwork": null }],
            },
        }));
        assert_eq!(
            body,
            CloneBody {
                name: Some("trial".parse().expect("a name")),
                host: Some("beta".parse().expect("a name")),
                machine: Some(MachineType { vcpus: 2, memory_mib: 1024 }),
                network: Some(NetworkWish::Bridge("lan".parse().expect("a name"))),
                labels: [("for", "tests"), ("new", "")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
                hostname: Some("shop.example".parse().expect("a host name")),
                firmware: Some(Firmware::Uefi),
                secure_boot: Some(true),
                request: Some("0197c0de-0000-7000-8000-000000000101".parse().expect("a UUID")),
                warnings: vec![],
            }
        );
        let empty =
            read(&serde_json::json!({ "computeEngineTargetDetails": { "vmName": "", "networkInterfaces": [] } }));
        assert_eq!(empty, CloneBody::default(), "what is empty is not set");
        let off = read(&serde_json::json!({ "computeEngineTargetDetails": { "secureBoot": false } }));
        assert_eq!(off.secure_boot, Some(false), "which is not the same as nothing said of it");
        let apart = read(&serde_json::json!({ "computeEngineTargetDetails": { "networkInterfaces": [{}, {}] } }));
        assert_eq!(apart.network, Some(NetworkWish::Isolated));
    }

    #[test]
    fn what_is_deprecated_is_taken_with_a_warning() {
        let older = serde_json::json!({
            "name": "trial", "targetProject": "sterna", "zone": "beta", "machineType": "custom-1-512", "bootOption": "BIOS",
        });
        for name in OLDER {
            let body = read(&serde_json::json!({ name: older }));
            assert_eq!(body.name.as_ref().map(VmName::as_str), Some("trial"), "{name}");
            assert_eq!(body.firmware, Some(Firmware::Bios));
            assert_eq!(body.warnings, [format!("{name} is deprecated; give {NEWER}")]);
        }
        // As a job tells of itself.
        let all = read(&serde_json::json!({
            "targetDetails": older,
            "state": "SUCCEEDED",
            "computeEngineVmDetails": older,
            "computeEngineTargetDetails": { "vmName": "newer", "bootOption": "COMPUTE_ENGINE_BOOT_OPTION_EFI" },
        }));
        assert_eq!((all.name.as_ref().map(VmName::as_str), all.host), (Some("newer"), None));
        let named: Vec<&str> =
            all.warnings.iter().filter_map(|text| text.split_once(" is left aside")).map(|of| of.0).collect();
        assert_eq!(named, ["state", OLDER[0], OLDER[1]]);
        let open = serde_json::json!({ NEWER: { "bootOption": "COMPUTE_ENGINE_BOOT_OPTION_UNSPECIFIED" } });
        assert_eq!(read(&open).firmware, None);
        let wrong = r#"{ "computeEngineTargetDetails": { "bootOption": "EFI" } }"#;
        fails(wrong, "computeEngineTargetDetails.bootOption", "give COMPUTE_ENGINE_BOOT_OPTION_EFI or");
        fails(
            r#"{ "targetDetails": { "vmName": "trial" } }"#,
            "targetDetails.vmName",
            "there are name, targetProject, zone",
        );
    }

    #[test]
    fn what_has_no_meaning_here_is_named() {
        let body = read(&serde_json::json!({ "computeEngineTargetDetails": {
            "vmName": "trial",
            "project": "projects/shop/locations/global/targetProjects/web",
            "enableVtpm": true,
            "networkInterfaces": [{ "externalIp": "ephemeral" }],
        } }));
        let expected = [
            ("enableVtpm", "a specification has no TPM: not built yet"),
            ("project", "there is one project, sterna"),
            ("networkInterfaces[0].externalIp", "a guest gets its address by itself"),
        ];
        let expected = expected.map(|(name, why)| format!("{NEWER}.{name} is left aside: {why}"));
        assert_eq!(body.warnings, expected);
    }

    #[test]
    fn what_nobody_knows_is_an_error_that_names_it() {
        fails(r#"{ "cloneJobId": "a" }"#, "cloneJobId", "there is no such field");
        fails(r#"{ "computeEngineTargetDetails": { "vmname": "a" } }"#, "computeEngineTargetDetails.vmname", "vmName");
        let interface = r#"{ "computeEngineTargetDetails": { "networkInterfaces": [{}, { "mac": "a" }] } }"#;
        fails(interface, "computeEngineTargetDetails.networkInterfaces[1].mac", "network, subnetwork");
        fails(r#"{ "computeEngineDisksTargetDetails": {} }"#, OF_DISKS, "not built yet");
        fails("{}", NEWER, "is missing");
        let long = format!("{{ \"{}\": 1 }}", "\\u0007x".repeat(5000));
        fails(&long, &shown(&"\u{7}x".repeat(5000)), "its name is longer than 256 bytes");
    }

    #[test]
    fn hostile_bodies_are_told_by_field() {
        fails("[]", "the body", "give an object, and not a list");
        fails("", "the body", "EOF");
        fails(r#"{ "computeEngineTargetDetails": {} } {}"#, "the body", "trailing characters");
        fails(r#"{ "computeEngineTargetDetails": 7 }"#, NEWER, "give an object, and not a number");
        for (member, field, what) in [
            (r#""vmName": 5"#, "vmName", "give a text, and not a number"),
            (r#""vmName": "../../etc""#, "vmName", "../../etc"),
            (r#""vmName": "a", "vmName": "b""#, "vmName", "it is there twice"),
            (r#""zone": ["beta"]"#, "zone", "give a text, and not a list"),
            (r#""zone": "no zone""#, "zone", "no zone"),
            (r#""hostname": "shop example""#, "hostname", "is no host name"),
            (r#""labels": "none""#, "labels", "give an object, and not a text"),
            (r#""labels": { "for": 7 }"#, "labels.for", "give a text, and not a number"),
            (r#""secureBoot": "yes""#, "secureBoot", "give true or false, and not a text"),
            (r#""machineType": "n1-standard-4""#, "machineType", "custom-VCPUS-MEBIBYTES"),
            (r#""machineType": "custom-99999999999-1""#, "machineType", "custom-VCPUS-MEBIBYTES"),
            (r#""machineType": "custom-1-18446744073709551615""#, "machineType", "custom-VCPUS-MEBIBYTES"),
            (r#""metadata": { "a": { "b": 1e999 } }"#, "metadata.a.b", "number out of range"),
            (r#""metadata": { "a": 18446744073709551616, "b" }"#, "metadata.b", "expected `:`"),
            (r#""networkInterfaces": {}"#, "networkInterfaces", "give a list, and not an object"),
            (r#""networkInterfaces": [{}, null]"#, "networkInterfaces[1]", "give an object, and not null"),
            (r#""networkInterfaces": [{ "network": 1e300 }]"#, "networkInterfaces[0].network", "not a number"),
            (r#""networkInterfaces": [{ "network": "lan" }, {}]"#, "networkInterfaces", "--network same"),
        ] {
            fails(&format!("{{ \"{NEWER}\": {{ {member} }} }}"), &format!("{NEWER}.{field}"), what);
        }
        for wrong in ["00000000-0000-0000-0000-000000000000", "7", ""] {
            let body = format!("{{ \"{REQUEST}\": \"{wrong}\", \"{NEWER}\": {{}} }}");
            assert_eq!(body.parse::<CloneBody>().is_ok(), wrong.is_empty(), "{wrong}");
        }
    }

    #[test]
    fn depth_has_a_bound_and_a_place() {
        let nested =
            |depth: usize| format!("{{ \"{NEWER}\": {{ \"metadata\": {}{} }} }}", "{\"a\":".repeat(depth), "1");
        let text = nested(60_000 / 5);
        fails(&text, &format!("{NEWER}.metadata{}", ".a".repeat(14)), "more than 16 values lie in each other");
        let lists = format!("{{ \"{NEWER}\": {{ \"networkTags\": {} }} }}", "[".repeat(60_000));
        fails(&lists, &format!("{NEWER}.networkTags{}", "[0]".repeat(14)), "more than 16 values");
        let many = format!("{{ \"{NEWER}\": {{ \"networkTags\": [{}0] }} }}", "0,".repeat(1024));
        fails(&many, &format!("{NEWER}.networkTags"), "more than 1024 values are in it");
    }
}
