//! Requests of Google's methods beside the bodies in them: which resource is meant, or which list, and what clone is to be made.
//! They are the messages that the methods have with Google, in JSON, field by field.

use std::fmt::Display;
use std::str::FromStr;

use sterna_shared::id::JobId;
use sterna_shared::view::google::{GroupName, InvalidName, MigratingVmName, Parent};

use super::body::{BodyFault, Field, Fields, Kind, Node, aside, fault, read, taken};
use super::clone_body::{CloneBody, OF_JOB, REQUEST, TOLD, read_request};
use super::filter::Filter;
use super::vm_body::{NAME, VmBody};

/// The longest page of a list, as with Google; who asks for more gets as many.
const PAGE_MAX: usize = 1000;

const PARENT: &str = "parent";
const VIEW: &str = "view";
const CLONE_JOB: &str = "cloneJob";
const CUTOVER_JOB: &str = "cutoverJob";
const MIGRATING_VM: &str = "migratingVm";
const UPDATE_MASK: &str = "updateMask";
const GROUP: &str = "group";
const PAGE_SIZE: &str = "pageSize";
const PAGE_TOKEN: &str = "pageToken";
const FILTER: &str = "filter";

const OF_VIEW: &[Field] = &[taken(VIEW, Kind::Text)];

/// Those of a list, beside what it is of, which operations call otherwise.
const OF_LIST: &[Field] = &[
    taken(PAGE_SIZE, Kind::Number),
    taken(PAGE_TOKEN, Kind::Text),
    taken(FILTER, Kind::Text),
    aside("orderBy", Kind::Text, "a list has its order: jobs the newest first, all else by name"),
];

/// Those of a clone that is to be made.
const OF_CREATE: &[Field] = &[
    taken(PARENT, Kind::Text),
    taken(CLONE_JOB, Kind::Object),
    taken(REQUEST, Kind::Text),
    aside("cloneJobId", Kind::Text, "a clone job is called by its job's id, which requestId says"),
];

/// Those of a cutover that is to be made.
const OF_CUTOVER: &[Field] = &[
    taken(PARENT, Kind::Text),
    taken(CUTOVER_JOB, Kind::Object),
    taken(REQUEST, Kind::Text),
    aside("cutoverJobId", Kind::Text, "a cutover job is called by its job's id, which requestId says"),
];

/// Those of a cutover job beside what any job tells.
const OF_CUTOVER_JOB: &[Field] = &[
    aside("stateMessage", Kind::Text, TOLD),
    aside("progressPercent", Kind::Number, TOLD),
    aside("computeEngineTargetDetails", Kind::Object, TOLD),
    aside("computeEngineVmDetails", Kind::Object, TOLD),
    aside("targetDetails", Kind::Object, TOLD),
    aside("computeEngineDisksTargetDetails", Kind::Object, TOLD),
];

const ASKED_TWICE: &str = "what is so already is not changed again, however often that is asked";

/// Those of a replicated VM that is to be changed.
const OF_PATCH: &[Field] =
    &[taken(UPDATE_MASK, Kind::Text), taken(MIGRATING_VM, Kind::Object), aside(REQUEST, Kind::Text, ASKED_TWICE)];

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List {
    pub(crate) within: Parent,
    /// Whether of replicated VMs all is told but the latest clone and cutover jobs.
    pub(crate) basic: bool,
    /// So many at most.
    pub(crate) size: usize,
    /// Those after the resource of that name.
    pub(crate) after: Option<String>,
    /// Those that it takes; all where it is left out.
    pub(crate) filter: Option<Filter>,
    pub(crate) warnings: Vec<String>,
}

/// A clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Create {
    /// What it is a clone of.
    pub(crate) of: MigratingVmName,
    pub(crate) clone: CloneBody,
    /// The job's id.
    pub(crate) request: Option<JobId>,
}

/// A cutover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CreateCutover {
    /// Of what.
    pub(crate) of: MigratingVmName,
    /// The job's id.
    pub(crate) request: Option<JobId>,
    pub(crate) warnings: Vec<String>,
}

/// What is to become of a replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Its policy and its labels, as the body says.
    Patch(Box<VmBody>),
    Pause,
    Resume,
    Extend,
    Finalize,
    /// It is in this group.
    Join(String),
    /// It is in that one no more.
    Leave(String),
}

/// A request. Nothing at all is one that has no fields.
fn open(text: &str) -> Result<Node, BodyFault> {
    if text.trim().is_empty() { Ok(Node::Object(Vec::new())) } else { read(text) }
}

const NO_NAME: &str = "it is missing; give the name of a resource, as lists tell it";

/// A name that has to be there.
fn name<N: FromStr<Err: Display>>(fields: &Fields<'_>, field: &str) -> Result<N, BodyFault> {
    fields.parsed(field)?.ok_or_else(|| fault(field, NO_NAME.to_owned()))
}

/// Whether the view that a request says is the basic one; without a word it is the full one.
fn is_basic(fields: &Fields<'_>) -> Result<bool, BodyFault> {
    match fields.text(VIEW) {
        None | Some("MIGRATING_VM_VIEW_UNSPECIFIED" | "MIGRATING_VM_VIEW_FULL") => Ok(false),
        Some("MIGRATING_VM_VIEW_BASIC") => Ok(true),
        Some(_) => {
            Err(fault(VIEW, "there is no such view; give MIGRATING_VM_VIEW_FULL or MIGRATING_VM_VIEW_BASIC".to_owned()))
        }
    }
}

/// Reads a request that names one resource.
pub(crate) fn read_name<N: FromStr<Err: Display>>(text: &str) -> Result<N, BodyFault> {
    let root = open(text)?;
    name(&Fields::of(&root, String::new(), &[&[taken(NAME, Kind::Text)]], &mut Vec::new())?, NAME)
}

/// Reads a request that has the name of a replicated VM, and nothing else that counts.
pub(crate) fn read_migration(text: &str, field: &'static str) -> Result<MigratingVmName, BodyFault> {
    let root = open(text)?;
    name(&Fields::of(&root, String::new(), &[&[taken(field, Kind::Text)]], &mut Vec::new())?, field)
}

/// Reads what is to be changed of a replicated VM, and of which.
pub(crate) fn read_patch(text: &str) -> Result<(MigratingVmName, VmBody), BodyFault> {
    let root = open(text)?;
    let mut warnings = Vec::new();
    let fields = Fields::of(&root, String::new(), &[OF_PATCH], &mut warnings)?;
    let mask = fields.text(UPDATE_MASK).unwrap_or_default();
    let mask: Vec<String> =
        mask.split(',').map(str::trim).filter(|path| !path.is_empty()).map(ToOwned::to_owned).collect();
    let Some(body) = fields.get(MIGRATING_VM) else {
        return Err(fault(MIGRATING_VM, "it is missing, and says which VM is to be as it says".to_owned()));
    };
    let mut body = VmBody::at(body, MIGRATING_VM.to_owned(), &mask)?;
    let of = body.name.take().ok_or_else(|| fault(&format!("{MIGRATING_VM}.{NAME}"), NO_NAME.to_owned()))?;
    body.warnings.splice(0..0, warnings);
    Ok((of, body))
}

/// Reads which group a replicated VM is to be in, or not, and which VM that is. A group is at the host that has the replica.
pub(crate) fn read_member(text: &str) -> Result<(GroupName, MigratingVmName), BodyFault> {
    let root = open(text)?;
    let of_member = [taken(GROUP, Kind::Text), taken(MIGRATING_VM, Kind::Text)];
    let fields = Fields::of(&root, String::new(), &[&of_member], &mut Vec::new())?;
    let (group, vm): (GroupName, MigratingVmName) = (name(&fields, GROUP)?, name(&fields, MIGRATING_VM)?);
    if group.location != vm.location {
        let what =
            format!("it is at {}, and the replica of that VM at {}; give one location", group.location, vm.location);
        return Err(fault(GROUP, what));
    }
    Ok((group, vm))
}

/// The same of a replicated VM, and whether the basic view of it is meant.
pub(crate) fn read_vm(text: &str) -> Result<(MigratingVmName, bool), BodyFault> {
    let root = open(text)?;
    let fields = Fields::of(&root, String::new(), &[&[taken(NAME, Kind::Text)], OF_VIEW], &mut Vec::new())?;
    Ok((name(&fields, NAME)?, is_basic(&fields)?))
}

/// What a list is of, and how a request says it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Of {
    pub(crate) field: &'static str,
    pub(crate) parse: fn(&str) -> Result<Parent, InvalidName>,
    /// So many a page where nothing is said.
    pub(crate) size: usize,
    pub(crate) has_views: bool,
    /// The fields that one of them has, by which they can be filtered.
    pub(crate) fields: &'static [&'static [&'static str]],
}

impl List {
    /// Reads a request for a list. One that does not say what of means all that there is.
    pub(crate) fn read(text: &str, of: Of) -> Result<Self, BodyFault> {
        let root = open(text)?;
        let mut warnings = Vec::new();
        let (own, views) = ([taken(of.field, Kind::Text)], if of.has_views { OF_VIEW } else { &[] });
        let fields = Fields::of(&root, String::new(), &[&own[..], OF_LIST, views], &mut warnings)?;
        let filter = fields.text(FILTER).map(|text| Filter::parse(text, &of.fields.concat())).transpose();
        let filter = filter.map_err(|what| fault(FILTER, what))?;
        let within = fields.text(of.field).map(of.parse).transpose();
        let within = within.map_err(|error| fault(of.field, error.to_string()))?.unwrap_or_default();
        let size = fields.number(PAGE_SIZE).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
        Ok(Self {
            within,
            basic: is_basic(&fields)?,
            size: size.unwrap_or(of.size).min(PAGE_MAX),
            after: fields.text(PAGE_TOKEN).map(ToOwned::to_owned),
            filter,
            warnings,
        })
    }
}

impl Create {
    /// Reads a request for a clone.
    pub(crate) fn read(text: &str) -> Result<Self, BodyFault> {
        let root = open(text)?;
        let mut warnings = Vec::new();
        let fields = Fields::of(&root, String::new(), &[OF_CREATE], &mut warnings)?;
        let of = name(&fields, PARENT)?;
        let Some(body) = fields.get(CLONE_JOB) else {
            return Err(fault(CLONE_JOB, "it is missing, and says what VM is to be made".to_owned()));
        };
        let mut clone = CloneBody::of(body, CLONE_JOB.to_owned())?;
        let (request, within) = (read_request(&fields)?, clone.request);
        if request.is_some() && within.is_some() && request != within {
            let what = format!("it is another than that of {CLONE_JOB}; give one of them");
            return Err(fault(REQUEST, what));
        }
        clone.warnings.splice(0..0, warnings);
        Ok(Self { of, clone, request: request.or(within) })
    }
}

impl CreateCutover {
    /// Reads a request for a cutover.
    pub(crate) fn read(text: &str) -> Result<Self, BodyFault> {
        let root = open(text)?;
        let mut warnings = Vec::new();
        let fields = Fields::of(&root, String::new(), &[OF_CUTOVER], &mut warnings)?;
        if let Some(job) = fields.get(CUTOVER_JOB) {
            Fields::of(job, CUTOVER_JOB.to_owned(), &[OF_JOB, OF_CUTOVER_JOB], &mut warnings)?;
        }
        Ok(Self { of: name(&fields, PARENT)?, request: read_request(&fields)?, warnings })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use sterna_shared::view::google::CloneJobName;

    use super::*;

    const VM: &str = "projects/sterna/locations/beta/sources/alpha/migratingVms/web";
    const JOB: &str = "0197c0de-0000-7000-8000-000000000101";

    fn list(body: &Value) -> Result<List, String> {
        let of = Of { field: PARENT, parse: Parent::of_vm, size: 25, has_views: true, fields: &[&["name", "state"]] };
        List::read(&body.to_string(), of).map_err(|fault| fault.to_string())
    }

    fn create(body: &Value) -> Result<Create, String> {
        Create::read(&body.to_string()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn a_list_is_of_what_its_parent_says() {
        let all = list(&json!({})).expect("a list");
        assert_eq!((all.within, all.size, all.basic), (Parent::default(), 25, false));
        let of = Of { field: NAME, parse: Parent::of_location, size: 7, has_views: false, fields: &[] };
        assert_eq!(List::read("", of).expect("a list").size, 7, "nothing is no fields");
        let some = json!({
            "parent": "projects/sterna/locations/-/sources/alpha/migratingVms/-", "pageSize": 3, "pageToken": "x",
            "view": "MIGRATING_VM_VIEW_BASIC", "orderBy": "name", "filter": "",
        });
        let some = list(&some).expect("a list");
        assert_eq!((some.size, some.after.as_deref(), some.basic), (3, Some("x"), true));
        assert!(some.within.has(&VM.parse().expect("a name")));
        assert!(!some.within.has(&VM.replace("alpha", "gamma").parse().expect("a name")));
        assert!(some.warnings[0].starts_with("orderBy is left aside: "), "{:?}", some.warnings);
        assert_eq!(list(&json!({ "pageSize": 0 })).expect("a list").size, 25);
        assert_eq!(list(&json!({ "pageSize": 4_000_000 })).expect("a list").size, PAGE_MAX);
    }

    #[test]
    fn what_is_wrong_with_a_request_is_told_by_field() {
        for (body, said) in [
            (json!({ "pageSize": -1 }), "pageSize: give a whole number from 0 on, and not another number"),
            (json!({ "pageSize": "3" }), "pageSize: give a whole number from 0 on, and not a text"),
            (
                json!({ "filter": "stat=ACTIVE" }),
                "filter: at character 1: there is no field stat; there are name, state",
            ),
            (json!({ "view": "ALL" }), "view: there is no such view; give MIGRATING_VM_VIEW_FULL"),
            (json!({ "parent": "web" }), "parent: \"web\" is not the name of a replicated VM; give one such as"),
            (json!({ "page": 1 }), "page: there is no such field; there are parent, pageSize"),
        ] {
            let fault = list(&body).expect_err(said);
            assert!(fault.starts_with(said), "{fault}");
        }
        let get = |body: &str| read_name::<CloneJobName>(body).map_err(|fault| fault.to_string());
        assert!(get("{}").expect_err("no name").starts_with("name: it is missing; give the name of a resource"));
        assert!(get(&json!({ "name": VM }).to_string()).expect_err("another").contains("cloneJobs/JOB"));
        assert!(get("hello").expect_err("no JSON").starts_with("the body: "));
        let name = format!("{VM}/cloneJobs/{JOB}");
        assert_eq!(get(&json!({ "name": name }).to_string()).map(|name| name.to_string()), Ok(name));
        let vm = json!({ "name": VM, "view": "MIGRATING_VM_VIEW_BASIC" }).to_string();
        assert_eq!(read_vm(&vm).map(|(name, basic)| (name.to_string(), basic)), Ok((VM.to_owned(), true)));
    }

    #[test]
    fn a_clone_is_asked_for_with_what_it_is_one_of_and_an_id() {
        let details = json!({ "vmName": "trial", "zone": "beta", "networkTags": ["a"] });
        let body = json!({
            "parent": VM, "cloneJobId": "trial-1", "requestId": JOB,
            "cloneJob": { "computeEngineTargetDetails": details },
        });
        let asked = create(&body).expect("a clone");
        assert_eq!((asked.of.to_string().as_str(), asked.request), (VM, Some(JOB.parse().expect("a UUID"))));
        assert_eq!(asked.clone.name.as_ref().map(|name| name.as_str()), Some("trial"));
        let named: Vec<&str> =
            asked.clone.warnings.iter().filter_map(|text| text.split_once(' ')).map(|of| of.0).collect();
        assert_eq!(named, ["cloneJobId", "cloneJob.computeEngineTargetDetails.networkTags"]);
        let within = json!({ "parent": VM, "cloneJob": { "requestId": JOB, "computeEngineTargetDetails": {} } });
        assert_eq!(create(&within).expect("a clone").request, asked.request, "as in a file");
        for (change, value, said) in [
            ("parent", json!(null), "parent: it is missing; give the name of a resource"),
            ("cloneJob", json!(null), "cloneJob: it is missing"),
            ("cloneJob", json!({}), "cloneJob.computeEngineTargetDetails: it is missing"),
            ("cloneJob", json!({ "cpus": 2 }), "cloneJob.cpus: there is no such field"),
            (
                "requestId",
                json!("0197c0de-0000-7000-8000-0000000000ff"),
                "requestId: it is another than that of cloneJob",
            ),
            ("requestId", json!("00000000-0000-0000-0000-000000000000"), "requestId: a UUID of zeroes"),
        ] {
            let mut body = within.clone();
            body[change] = value;
            let fault = create(&body).expect_err(said);
            assert!(fault.starts_with(said), "{fault}");
        }
    }
}
