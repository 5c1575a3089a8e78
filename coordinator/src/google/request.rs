//! Requests of Google's methods beside the bodies in them: which resource is meant, or which list, and what clone is to be made.
//! They are the messages that the methods have with Google, in JSON, field by field.

use std::fmt::Display;
use std::str::FromStr;

use sterna_shared::id::JobId;
use sterna_shared::view::google::{InvalidName, MigratingVmName, Parent};

use super::body::{BodyFault, Field, Fields, Kind, Node, aside, fault, read, taken};
use super::clone_body::{CloneBody, REQUEST, read_request};

/// The longest page of a list, as with Google; who asks for more gets as many.
const PAGE_MAX: usize = 1000;

const NAME: &str = "name";
const PARENT: &str = "parent";
const VIEW: &str = "view";
const CLONE_JOB: &str = "cloneJob";
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

/// A request. Nothing at all is one that has no fields.
fn open(text: &str) -> Result<Node, BodyFault> {
    if text.trim().is_empty() { Ok(Node::Object(Vec::new())) } else { read(text) }
}

/// A name that has to be there.
fn name<N: FromStr<Err: Display>>(fields: &Fields<'_>, field: &str) -> Result<N, BodyFault> {
    let missing = || fault(field, "it is missing; give the name of a resource, as lists tell it".to_owned());
    fields.parsed(field)?.ok_or_else(missing)
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
}

impl List {
    /// Reads a request for a list. One that does not say what of means all that there is.
    pub(crate) fn read(text: &str, of: Of) -> Result<Self, BodyFault> {
        let root = open(text)?;
        let mut warnings = Vec::new();
        let (own, views) = ([taken(of.field, Kind::Text)], if of.has_views { OF_VIEW } else { &[] });
        let fields = Fields::of(&root, String::new(), &[&own[..], OF_LIST, views], &mut warnings)?;
        if fields.text(FILTER).is_some() {
            let what = format!("lists are not filtered: not built yet; leave it out, and give {}", of.field);
            return Err(fault(FILTER, what));
        }
        let within = fields.text(of.field).map(of.parse).transpose();
        let within = within.map_err(|error| fault(of.field, error.to_string()))?.unwrap_or_default();
        let size = fields.number(PAGE_SIZE).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
        Ok(Self {
            within,
            basic: is_basic(&fields)?,
            size: size.unwrap_or(of.size).min(PAGE_MAX),
            after: fields.text(PAGE_TOKEN).map(ToOwned::to_owned),
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use sterna_shared::view::google::CloneJobName;

    use super::*;

    const VM: &str = "projects/sterna/locations/beta/sources/alpha/migratingVms/web";
    const JOB: &str = "0197c0de-0000-7000-8000-000000000101";

    fn list(body: &Value) -> Result<List, String> {
        let of = Of { field: PARENT, parse: Parent::of_vm, size: 25, has_views: true };
        List::read(&body.to_string(), of).map_err(|fault| fault.to_string())
    }

    fn create(body: &Value) -> Result<Create, String> {
        Create::read(&body.to_string()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn a_list_is_of_what_its_parent_says() {
        let all = list(&json!({})).expect("a list");
        assert_eq!((all.within, all.size, all.basic), (Parent::default(), 25, false));
        let of = Of { field: NAME, parse: Parent::of_location, size: 7, has_views: false };
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
            (json!({ "filter": "state=ACTIVE" }), "filter: lists are not filtered"),
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
