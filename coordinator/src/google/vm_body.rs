//! What is changed of a replication, in Google's form: a `MigratingVm` in JSON, as it is the body of `migratingVms.patch`, with the
//! mask that says which of its fields count.
//!
//! A field that the mask names is as the body has it afterwards, also where that has none. Without a mask all that the body has is
//! meant; what Sterna does not change is then left aside with a warning, and named in a mask it is an error.

use std::collections::BTreeMap;

use sterna_shared::bus::JobChange;
use sterna_shared::job::{Policy, Schedule};
use sterna_shared::replica::IDLE_MAX_SECONDS;
use sterna_shared::view::google::MigratingVmName;

use super::body::{BodyFault, Field, Fields, Kind, Node, aside, fault, read, taken};

pub(super) const NAME: &str = "name";
const POLICY: &str = "policy";
const LABELS: &str = "labels";
const IDLE: &str = "idleDuration";

const TOLD: &str = "Sterna tells it, and nobody asks for it";
const AT_THE_CLONE: &str = "what a clone is like is said when it is made: sterna clone create VM";
const NO_SUCH_SOURCE: &str = "a source is a host of Sterna's";

/// Those of a replicated VM.
const OF_VM: &[Field] = &[
    taken(NAME, Kind::Text),
    taken(POLICY, Kind::Object),
    taken(LABELS, Kind::Object),
    aside("displayName", Kind::Text, "it is the VM's own name; to find it by another, give labels"),
    aside("description", Kind::Text, "it tells the replication's plan; to say something else of it, give labels"),
    aside("group", Kind::Text, "groups say what is in them: sterna group add GROUP VM, sterna group remove GROUP VM"),
    aside("expiration", Kind::Object, "it is pushed back with sterna replicate extend VM"),
    aside("state", Kind::Text, "it is changed with sterna replicate pause VM, and resume and finalize"),
    aside("computeEngineTargetDefaults", Kind::Object, AT_THE_CLONE),
    aside("computeEngineVmDefaults", Kind::Object, AT_THE_CLONE),
    aside("targetDefaults", Kind::Object, AT_THE_CLONE),
    aside("computeEngineDisksTargetDefaults", Kind::Object, "a clone is a VM; disks without one are not built yet"),
    aside("vmwareSourceVmDetails", Kind::Object, NO_SUCH_SOURCE),
    aside("awsSourceVmDetails", Kind::Object, NO_SUCH_SOURCE),
    aside("azureSourceVmDetails", Kind::Object, NO_SUCH_SOURCE),
    aside("sourceVmId", Kind::Text, TOLD),
    aside("createTime", Kind::Text, TOLD),
    aside("updateTime", Kind::Text, TOLD),
    aside("lastSync", Kind::Object, TOLD),
    aside("stateTime", Kind::Text, TOLD),
    aside("currentSyncInfo", Kind::Object, TOLD),
    aside("lastReplicationCycle", Kind::Object, TOLD),
    aside("recentCloneJobs", Kind::List, TOLD),
    aside("recentCutoverJobs", Kind::List, TOLD),
    aside("cutoverForecast", Kind::Object, TOLD),
    aside("error", Kind::Object, TOLD),
];

/// Those of its policy.
const OF_POLICY: &[Field] = &[
    taken(IDLE, Kind::Text),
    aside(
        "skipOsAdaptation",
        Kind::Flag,
        "it is said of each clone when it is made: sterna clone create VM --skip-os-adaptation",
    ),
];

/// What is changed of a replication.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VmBody {
    /// `name`: which it is.
    pub(crate) name: Option<MigratingVmName>,
    /// `policy.idleDuration`.
    pub(crate) idle_seconds: Option<u32>,
    /// `labels`: all that there are afterwards.
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// What is left aside, and why.
    pub(crate) warnings: Vec<String>,
}

impl VmBody {
    /// Reads a body, of which the fields count that the mask names; where that is empty, all.
    pub(crate) fn of(text: &str, mask: &[String]) -> Result<Self, BodyFault> {
        Self::at(&read(text)?, String::new(), mask)
    }

    /// The same of one that is at that place of a request.
    pub(super) fn at(root: &Node, path: String, mask: &[String]) -> Result<Self, BodyFault> {
        let (with_idle, with_labels) = named(mask)?;
        let mut body = Self::default();
        let fields = Fields::of(root, path, &[OF_VM], &mut body.warnings)?;
        body.name = fields.parsed(NAME)?;
        let nothing = Node::Object(Vec::new());
        let policy = fields.get(POLICY).unwrap_or(&nothing);
        let policy = Fields::of(policy, fields.path(POLICY), &[OF_POLICY], &mut body.warnings)?;
        let idle = policy.text(IDLE).map(|text| parse_idle(text).map_err(|what| fault(&policy.path(IDLE), what)));
        let (idle, labels) = (idle.transpose()?, fields.texts(LABELS)?);
        if mask.is_empty() {
            (body.idle_seconds, body.labels) = (idle, Some(labels).filter(|labels| !labels.is_empty()));
            return Ok(body);
        }
        // Of what else there is nobody has asked.
        body.warnings.clear();
        if with_idle {
            let missing =
                "the mask names it and the body has none, but a replication has a pause; give a text such as 600s";
            body.idle_seconds = Some(idle.ok_or_else(|| fault(&policy.path(IDLE), missing.to_owned()))?);
        }
        body.labels = with_labels.then_some(labels);
        Ok(body)
    }

    /// What that is of a replication with such a policy: nothing where it is so already.
    pub(crate) fn changes(&self, policy: &Policy) -> Vec<JobChange> {
        let schedule = policy.schedule.clone().unwrap_or_default();
        let idle = self.idle_seconds.filter(|_| schedule.idle_seconds != self.idle_seconds);
        let idle = idle.map(|idle| {
            let schedule = Schedule { idle_seconds: Some(idle), ..schedule };
            JobChange::Schedule { schedule: Some(Box::new(schedule)) }
        });
        let set = self.labels.iter().flatten().filter(|(key, value)| policy.labels.get(*key) != Some(*value));
        let set = set.map(|(key, value)| JobChange::Label { key: key.clone(), value: Some(value.clone()) });
        let goes = |key: &&String| self.labels.as_ref().is_some_and(|labels| !labels.contains_key(*key));
        let gone = policy.labels.keys().filter(goes).map(|key| JobChange::Label { key: key.clone(), value: None });
        idle.into_iter().chain(gone).chain(set).collect()
    }
}

/// Whether a mask names the pause, and the labels; an error where it names what is not changed.
fn named(mask: &[String]) -> Result<(bool, bool), BodyFault> {
    let (mut with_idle, mut with_labels) = (false, false);
    for path in mask {
        let (first, rest) = path.split_once('.').map_or((path.as_str(), None), |(first, rest)| (first, Some(rest)));
        match (first, rest) {
            (POLICY, None | Some(IDLE)) => with_idle = true,
            (LABELS, None) => with_labels = true,
            (LABELS, Some(_)) => {
                let what =
                    "a mask names labels as a whole; one of them is changed with sterna replicate label VM KEY=VALUE";
                return Err(fault(path, what.to_owned()));
            }
            (POLICY, Some(rest)) => return Err(not_changed(path, rest, OF_POLICY)),
            _ => return Err(not_changed(path, first, OF_VM)),
        }
    }
    Ok((with_idle, with_labels))
}

fn not_changed(path: &str, name: &str, fields: &[Field]) -> BodyFault {
    let field = fields.iter().find(|field| field.name == name);
    let what = match field.map(|field| field.aside) {
        Some(why) => {
            format!("the mask names it, and it is not changed so: {}", why.unwrap_or("it is what the VM is found by"))
        }
        None => {
            format!("a replicated VM has no such field; those that can be changed are {POLICY}.{IDLE} and {LABELS}")
        }
    };
    fault(path, what)
}

/// Whole seconds, as Google's durations have them.
fn parse_idle(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('s').map(|number| number.split_once('.').unwrap_or((number, "")));
    let whole = number.filter(|(_, part)| part.bytes().all(|digit| digit == b'0')).map(|(whole, _)| whole);
    let whole = whole.filter(|whole| whole.bytes().all(|digit| digit.is_ascii_digit()));
    whole
        .and_then(|whole| whole.parse().ok())
        .filter(|seconds| (1..=IDLE_MAX_SECONDS).contains(seconds))
        .ok_or_else(|| format!("give whole seconds with an s, such as 600s, from 1s to {IDLE_MAX_SECONDS}s"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &serde_json::Value, mask: &[&str]) -> Result<VmBody, String> {
        let mask: Vec<String> = mask.iter().map(|path| (*path).to_owned()).collect();
        VmBody::of(&body.to_string(), &mask).map_err(|fault| fault.to_string())
    }

    fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn policy() -> Policy {
        let labels = labels(&[("team", "shop"), ("old", "")]);
        Policy { schedule: Some(Schedule::after_pauses(300)), labels, ..Policy::default() }
    }

    #[test]
    fn without_a_mask_all_that_the_body_has_is_meant() {
        let body = json!({
            "name": "projects/sterna/locations/beta/sources/alpha/migratingVms/web",
            "displayName": "shop",
            "policy": { "idleDuration": "600s", "skipOsAdaptation": true },
            "labels": { "team": "night" },
            "targetDefaults": {},
            "group": null,
        });
        let body = read(&body, &[]).expect("a body");
        assert_eq!((body.idle_seconds, &body.labels), (Some(600), &Some(labels(&[("team", "night")]))));
        let mut aside: Vec<&str> =
            body.warnings.iter().filter_map(|text| text.split_once(" is left aside: ")).map(|of| of.0).collect();
        aside.sort_unstable();
        assert_eq!(aside, ["displayName", "policy.skipOsAdaptation", "targetDefaults"]);
        assert_eq!(body.name.map(|name| name.vm.to_string()), Some("web".to_owned()));
        let nothing = read(&json!({ "labels": {}, "policy": {} }), &[]).expect("a body");
        assert_eq!(nothing, VmBody::default(), "what is empty is not there");
    }

    #[test]
    fn a_mask_says_what_counts_also_where_the_body_has_none() {
        let body = json!({ "displayName": "shop", "policy": { "idleDuration": "60.000s" }, "labels": { "a": "b" } });
        let only = |mask: &[&str]| read(&body, mask).map(|body| (body.idle_seconds, body.labels, body.warnings.len()));
        let all = Some(labels(&[("a", "b")]));
        assert_eq!(only(&["policy.idleDuration"]), Ok((Some(60), None, 0)));
        assert_eq!(only(&["labels"]), Ok((None, all.clone(), 0)));
        assert_eq!(only(&["policy", "labels"]), Ok((Some(60), all, 0)));
        assert_eq!(read(&json!({}), &["labels"]).expect("a body").labels, Some(BTreeMap::new()), "they go");
        let fault = read(&json!({ "policy": {} }), &["policy"]).expect_err("no pause");
        assert!(fault.starts_with("policy.idleDuration: the mask names it and the body has none"), "{fault}");
    }

    #[test]
    fn what_a_mask_cannot_change_is_named_with_what_to_do() {
        for (path, what) in [
            ("displayName", "the VM's own name"),
            ("group", "sterna group add GROUP VM"),
            ("state", "sterna replicate pause VM"),
            ("expiration.expireTime", "sterna replicate extend VM"),
            ("policy.skipOsAdaptation", "--skip-os-adaptation"),
            ("labels.team", "sterna replicate label VM KEY=VALUE"),
            ("createTime", "nobody asks for it"),
            ("name", "what the VM is found by"),
            ("idleDuration", "those that can be changed are policy.idleDuration and labels"),
            ("policy.idle", "those that can be changed are policy.idleDuration and labels"),
            ("", "there is no"),
            ("*", "no such field"),
        ] {
            let fault = read(&json!({}), &["labels", path]).expect_err(path);
            let named = if path.is_empty() { "the body" } else { path };
            assert!(fault.starts_with(&format!("{named}: ")), "{fault}");
            assert!(fault.contains(what) || path.is_empty(), "{fault}");
        }
    }

    #[test]
    fn hostile_changes_are_told_by_field() {
        for (body, field, what) in [
            (json!([]), "the body", "give an object"),
            (json!({ "policy": "often" }), "policy", "give an object, and not a text"),
            (json!({ "policy": { "idleDuration": 600 } }), "policy.idleDuration", "give a text, and not a number"),
            (json!({ "policy": { "idle": "1s" } }), "policy.idle", "there is no such field"),
            (json!({ "labels": { "a": 7 } }), "labels.a", "give a text, and not a number"),
            (json!({ "idleDuration": "600s" }), "idleDuration", "there is no such field"),
            (json!({ "name": "web" }), "name", "is not the name of a replicated VM"),
        ] {
            let fault = read(&body, &[]).expect_err(field);
            assert!(fault.starts_with(&format!("{field}: ")) && fault.contains(what), "{fault}");
        }
        for wrong in ["600", "0s", "-1s", "+1s", "1.5s", "s", ".s", "2592001s", "10m", "99999999999s"] {
            assert!(parse_idle(wrong).is_err(), "{wrong}");
        }
        assert_eq!((parse_idle("1s"), parse_idle("2592000.0s")), (Ok(1), Ok(2_592_000)));
    }

    #[test]
    fn what_is_so_already_is_not_changed_again() {
        let body =
            read(&json!({ "policy": { "idleDuration": "600s" }, "labels": { "team": "night", "new": "" } }), &[]);
        let body = body.expect("a body");
        let label = |key: &str, value: Option<&str>| JobChange::Label {
            key: key.to_owned(),
            value: value.map(ToOwned::to_owned),
        };
        let idle = JobChange::Schedule { schedule: Some(Box::new(Schedule::after_pauses(600))) };
        let expected = [idle, label("old", None), label("new", Some("")), label("team", Some("night"))];
        assert_eq!(body.changes(&policy()), expected);
        let after = Policy {
            schedule: Some(Schedule::after_pauses(600)),
            labels: labels(&[("team", "night"), ("new", "")]),
            ..policy()
        };
        assert!(body.changes(&after).is_empty());
        assert!(VmBody::default().changes(&policy()).is_empty());
    }
}
