//! Answers to Google's methods, in JSON: what is told, made of all that is known; what is to be changed; and errors.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::Serialize;
use serde_json::{Map, Value, json};
use sterna_shared::bus::{ApiError, ApiErrorKind, ApiReply, BODY_LENGTH_MAX};
use sterna_shared::id::JobId;
use sterna_shared::job::Refusal;
use sterna_shared::view::google::{
    CloneJobName, CutoverJobName, ERROR_DOMAIN, ErrorDetail, ErrorInfo, GroupName, Known, Method, MigratingVmName,
    OperationName, PAGE_DEFAULT, Page, Parent, ReplicationCycle, ReplicationCycleName,
};

use super::body::{BodyFault, shown};
use super::request::{
    Change, Create, CreateCutover, List, Of, read_member, read_migration, read_name, read_patch, read_vm,
};
use crate::api::fault;

/// The longest list in one answer, in bytes: room is left for what is around it. What is left is on the next page.
const LIST_LENGTH_MAX: usize = BODY_LENGTH_MAX - (64 << 10);
/// The resources of a page where nobody says how many, as with Google; of jobs it has fewer ([`PAGE_DEFAULT`]).
const RESOURCES_DEFAULT: usize = 500;

// The fields of each, which are Google's; docs/clone-job.md has them.
const OF_MIGRATING_VM: &[&str] = &[
    "computeEngineTargetDefaults",
    "computeEngineDisksTargetDefaults",
    "vmwareSourceVmDetails",
    "awsSourceVmDetails",
    "azureSourceVmDetails",
    "name",
    "sourceVmId",
    "displayName",
    "description",
    "policy",
    "createTime",
    "updateTime",
    "lastSync",
    "state",
    "stateTime",
    "currentSyncInfo",
    "lastReplicationCycle",
    "group",
    "labels",
    "recentCloneJobs",
    "error",
    "recentCutoverJobs",
    "cutoverForecast",
    "expiration",
];
const OF_CYCLE: &[&str] = &[
    "name",
    "cycleNumber",
    "startTime",
    "endTime",
    "totalPauseDuration",
    "progressPercent",
    "steps",
    "state",
    "error",
    "warnings",
];
const OF_CLONE_JOB: &[&str] = &[
    "createTime",
    "endTime",
    "name",
    "targetDetails",
    "state",
    "stateTime",
    "error",
    "steps",
    "computeEngineVmDetails",
    "computeEngineTargetDetails",
    "computeEngineDisksTargetDetails",
];
/// Those that a cutover job has besides.
const OF_CUTOVER_JOB: &[&str] = &["progressPercent", "stateMessage"];
const OF_GROUP: &[&str] = &["name", "createTime", "updateTime", "description", "displayName", "migrationTargetType"];
const OF_OPERATION: &[&str] = &["name", "metadata", "done", "error", "response"];

const CYCLES: Of =
    Of { field: "parent", parse: Parent::of_vm, size: RESOURCES_DEFAULT, has_views: false, fields: &[OF_CYCLE] };
const MIGRATING_VMS: Of = Of { parse: Parent::of_source, has_views: true, fields: &[OF_MIGRATING_VM], ..CYCLES };
const CLONE_JOBS: Of = Of { size: PAGE_DEFAULT, fields: &[OF_CLONE_JOB], ..CYCLES };
const CUTOVER_JOBS: Of = Of { fields: &[OF_CLONE_JOB, OF_CUTOVER_JOB], ..CLONE_JOBS };
const GROUPS: Of = Of { parse: Parent::of_location, fields: &[OF_GROUP], ..CYCLES };
const OPERATIONS: Of = Of { field: "name", fields: &[OF_OPERATION], ..GROUPS };

/// What a request comes to.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// An answer, at once.
    Told(ApiReply),
    /// A clone.
    Clone(Box<Create>),
    /// A cutover.
    Cutover(CreateCutover),
    /// That something becomes of a replication.
    Change(MigratingVmName, Change),
    /// That a job is cancelled, which is then answered so.
    Cancel(JobId, ApiReply),
}

/// Reads the request of a method, and answers it where it changes nothing.
///
/// # Errors
/// What is wrong with the request, or that there is no such resource.
pub(crate) fn read(known: &Known<'_>, method: Method, body: &str) -> Result<Wanted, ApiError> {
    let wrong = |wrong: BodyFault| unreadable(method, &wrong);
    let list = |of| List::read(body, of).map_err(wrong);
    let of_vm = |field, change| read_migration(body, field).map(|name| Wanted::Change(name, change)).map_err(wrong);
    let told = match method {
        Method::MigratingVmsGet => {
            let (name, is_basic) = read_vm(body).map_err(wrong)?;
            let found = known.migrating_vms(Some(name.vm.as_str()));
            let found = if is_basic { found.basic() } else { found };
            one(method, &name, found.migrating_vms, |vm| &vm.name)
        }
        Method::MigratingVmsList => {
            let list = list(MIGRATING_VMS)?;
            let all = known.migrating_vms(list.within.vm.as_ref().map(|vm| vm.as_str()));
            let all = if list.basic { all.basic() } else { all };
            let within = all.migrating_vms.into_iter().filter(|vm| list.within.has(&vm.name));
            page(method, &list, within, |vm| vm.name.to_string())
        }
        Method::MigratingVmsPatch => {
            let (name, body) = read_patch(body).map_err(wrong)?;
            return Ok(Wanted::Change(name, Change::Patch(Box::new(body))));
        }
        Method::MigratingVmsPause => return of_vm("migratingVm", Change::Pause),
        Method::MigratingVmsResume => return of_vm("migratingVm", Change::Resume),
        Method::MigratingVmsExtend => return of_vm("migratingVm", Change::Extend),
        Method::MigratingVmsFinalize => return of_vm("migratingVm", Change::Finalize),
        Method::ReplicationCyclesGet => {
            let name: ReplicationCycleName = read_name(body).map_err(wrong)?;
            let cycles = known.replication_cycles(name.vm.vm.as_str()).replication_cycles;
            one(method, &name, cycles, |cycle| &cycle.name)
        }
        Method::ReplicationCyclesList => {
            let list = list(CYCLES)?;
            let within = cycles(known, &list.within).into_iter().filter(|cycle| list.within.has(&cycle.name.vm));
            page(method, &list, within, |cycle| cycle.name.to_string())
        }
        Method::CloneJobsCreate => {
            return Create::read(body).map(|create| Wanted::Clone(Box::new(create))).map_err(wrong);
        }
        Method::CloneJobsCancel => {
            let name: CloneJobName = read_name(body).map_err(wrong)?;
            find(method, &name, known.clone_job(name.job), |job| &job.name)?;
            return Ok(Wanted::Cancel(name.job, done("CancelCloneJobResponse", &json!({}), Vec::new())));
        }
        Method::CloneJobsGet => {
            let name: CloneJobName = read_name(body).map_err(wrong)?;
            one(method, &name, known.clone_job(name.job), |job| &job.name)
        }
        Method::CloneJobsList => {
            let list = list(CLONE_JOBS)?;
            let all = known.clone_jobs(&Page::latest(usize::MAX)).clone_jobs;
            let within = all.into_iter().filter(|job| list.within.has(&job.name.vm));
            page(method, &list, within, |job| job.name.to_string())
        }
        Method::CutoverJobsCreate => return CreateCutover::read(body).map(Wanted::Cutover).map_err(wrong),
        Method::CutoverJobsCancel => {
            let name: CutoverJobName = read_name(body).map_err(wrong)?;
            find(method, &name, known.cutover_job(name.job), |job| &job.name)?;
            return Ok(Wanted::Cancel(name.job, done("CancelCutoverJobResponse", &json!({}), Vec::new())));
        }
        Method::CutoverJobsGet => {
            let name: CutoverJobName = read_name(body).map_err(wrong)?;
            one(method, &name, known.cutover_job(name.job), |job| &job.name)
        }
        Method::CutoverJobsList => {
            let list = list(CUTOVER_JOBS)?;
            let all = known.cutover_jobs(&Page::latest(usize::MAX)).cutover_jobs;
            let within = all.into_iter().filter(|job| list.within.has(&job.name.vm));
            page(method, &list, within, |job| job.name.to_string())
        }
        Method::GroupsGet => {
            let name: GroupName = read_name(body).map_err(wrong)?;
            one(method, &name, known.groups(Some(&name.group)).groups, |group| &group.name)
        }
        Method::GroupsList => {
            let list = list(GROUPS)?;
            let within = known.groups(None).groups.into_iter();
            let within = within.filter(|group| list.within.has_location(&group.name.location));
            page(method, &list, within, |group| group.name.to_string())
        }
        Method::GroupsAdd => {
            let (group, vm) = read_member(body).map_err(wrong)?;
            return Ok(Wanted::Change(vm, Change::Join(group.group)));
        }
        Method::GroupsRemove => {
            let (group, vm) = read_member(body).map_err(wrong)?;
            return Ok(Wanted::Change(vm, Change::Leave(group.group)));
        }
        Method::OperationsGet => {
            let name: OperationName = read_name(body).map_err(wrong)?;
            one(method, &name, known.operations().operations, |operation| &operation.name)
        }
        Method::OperationsList => {
            let list = list(OPERATIONS)?;
            let within = known.operations().operations.into_iter();
            let within = within.filter(|operation| list.within.has_location(&operation.name.location));
            page(method, &list, within, |operation| operation.name.to_string())
        }
    }?;
    Ok(Wanted::Told(told))
}

/// A document as an answer.
pub(crate) fn reply(document: &impl Serialize, warnings: Vec<String>) -> Result<ApiReply, ApiError> {
    let body = serde_json::to_string(document).map_err(|error| unwritten(&error))?;
    Ok(ApiReply::Google { body, warnings })
}

/// An error as Google's JSON has it: what happened and what to do in one text, and for programs each reason of a refusal.
pub(crate) fn told(error: &ApiError) -> Value {
    let (code, status) = match error.kind {
        ApiErrorKind::Invalid => (400, "INVALID_ARGUMENT"),
        ApiErrorKind::NotFound => (404, "NOT_FOUND"),
        ApiErrorKind::Refused => (400, "FAILED_PRECONDITION"),
        ApiErrorKind::Failed => (500, "INTERNAL"),
        ApiErrorKind::Unreachable => (503, "UNAVAILABLE"),
    };
    let reasons = error.refusals.iter().flat_map(|refusal| [&refusal.message, &refusal.remedy]);
    let texts: Vec<&str> =
        std::iter::once(&error.message).chain(reasons).chain(&error.hints).map(String::as_str).collect();
    let details: Vec<ErrorDetail> = error.refusals.iter().map(detail).collect();
    json!({ "error": { "code": code, "message": texts.join("; "), "status": status, "details": details } })
}

fn detail(refusal: &Refusal) -> ErrorDetail {
    let entry = refusal.code.entry();
    let metadata = [("messageId", entry.message_id.to_owned()), ("message", refusal.message.clone())];
    ErrorDetail::Info(ErrorInfo {
        reason: entry.name.to_uppercase(),
        domain: ERROR_DOMAIN,
        metadata: metadata.into_iter().collect(),
    })
}

/// That a request cannot be read.
fn unreadable(method: Method, wrong: &BodyFault) -> ApiError {
    let hint = "docs/clone-job.md says of each field what it means here";
    fault(ApiErrorKind::Invalid, format!("{method}: {wrong}"), hint)
}

fn unwritten(error: &serde_json::Error) -> ApiError {
    fault(ApiErrorKind::Failed, format!("the answer cannot be written: {error}"), "ask for something else")
}

/// An operation that is over as soon as it is told, with what came of it. It has no name, since nobody need ask for it again.
pub(crate) fn done(kind: &str, document: &impl Serialize, warnings: Vec<String>) -> ApiReply {
    let mut response = Map::new();
    response.insert("@type".into(), format!("type.googleapis.com/google.cloud.vmmigration.v1.{kind}").into());
    if let Ok(Value::Object(members)) = serde_json::to_value(document) {
        response.extend(members);
    }
    ApiReply::Google { body: json!({ "done": true, "response": response }).to_string(), warnings }
}

/// The resource of that name.
fn find<T, N: PartialEq + Display>(
    method: Method,
    name: &N,
    all: impl IntoIterator<Item = T>,
    named: impl Fn(&T) -> &N,
) -> Result<T, ApiError> {
    all.into_iter().find(|one| named(one) == name).ok_or_else(|| not_found(method.tokens().0, name))
}

/// That a collection has no resource of that name.
pub(crate) fn not_found(collection: &str, name: &impl Display) -> ApiError {
    fault(
        ApiErrorKind::NotFound,
        format!("there is no {name}"),
        format!("{collection}.list tells those that there are"),
    )
}

fn one<T: Serialize, N: PartialEq + Display>(
    method: Method,
    name: &N,
    all: impl IntoIterator<Item = T>,
    named: impl Fn(&T) -> &N,
) -> Result<ApiReply, ApiError> {
    reply(&find(method, name, all, named)?, Vec::new())
}

/// The cycles of the replicated VMs that may be meant.
fn cycles(known: &Known<'_>, within: &Parent) -> Vec<ReplicationCycle> {
    let vms = known.migrating_vms(within.vm.as_ref().map(|vm| vm.as_str())).migrating_vms;
    let vms: BTreeSet<_> = vms.into_iter().map(|vm| vm.name.vm).collect();
    vms.iter().flat_map(|vm| known.replication_cycles(vm.as_str()).replication_cycles).collect()
}

/// A page of a list: as many as are asked for, and as go into one message. Where there is more, the name of the last is where it
/// goes on; so a page is right also where something has come meanwhile, and where the last is gone that is told.
fn page<T: Serialize>(
    method: Method,
    list: &List,
    all: impl IntoIterator<Item = T>,
    name: impl Fn(&T) -> String,
) -> Result<ApiReply, ApiError> {
    let collection = method.tokens().0;
    let mut left = all.into_iter();
    // It may be taken no more since, and stands in the list where it stood.
    if let Some(after) = &list.after
        && !left.any(|one| name(&one) == *after)
    {
        let message = format!("pageToken: there is no {} any more, with which the page before ended", shown(after));
        return Err(fault(ApiErrorKind::Invalid, message, "begin anew, without a pageToken"));
    }
    let told = left.map(|one| serde_json::to_value(&one).map(|told| (name(&one), told)));
    let takes = |told: &Value| list.filter.as_ref().is_none_or(|filter| filter.takes(told));
    let mut left = told.filter(|one| one.as_ref().map_or(true, |(_, told)| takes(told))).peekable();
    let (mut page, mut length, mut last) = (Vec::new(), 0, None);
    while let Some(one) = left.next_if(|_| page.len() < list.size) {
        let (name, told) = one.map_err(|error| unwritten(&error))?;
        length += told.to_string().len() + 1;
        if length > LIST_LENGTH_MAX && !page.is_empty() {
            return told_page(collection, page, last, list);
        }
        last = Some(name);
        page.push(told);
    }
    let last = last.filter(|_| left.peek().is_some());
    told_page(collection, page, last, list)
}

fn told_page(collection: &str, page: Vec<Value>, next: Option<String>, list: &List) -> Result<ApiReply, ApiError> {
    let mut document = Map::new();
    if !page.is_empty() {
        document.insert(collection.to_owned(), page.into());
    }
    document.extend(next.map(|next| ("nextPageToken".to_owned(), next.into())));
    reply(&document, list.warnings.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_no_longer_than_a_message() {
        // Three resources of which two go into a message, and one that is as long as a message by itself.
        let all = || [("a", 400 << 10), ("b", 400 << 10), ("c", 400 << 10), ("d", 1 << 20), ("e", 7)];
        let all = || all().map(|(name, length)| json!({ "name": name, "text": "x".repeat(length) }));
        let name = |one: &Value| one["name"].as_str().unwrap_or_default().to_owned();
        let (mut pages, mut list) = (Vec::new(), List::read("", GROUPS).expect("a list"));
        loop {
            let ApiReply::Google { body, .. } = page(Method::GroupsList, &list, all(), name).expect("a page") else {
                panic!("another answer")
            };
            let told: Value = serde_json::from_str(&body).expect("JSON");
            let names: Vec<String> = told["groups"].as_array().expect("some").iter().map(name).collect();
            pages.push(names.concat());
            list.after = told["nextPageToken"].as_str().map(ToOwned::to_owned);
            if list.after.is_none() {
                break;
            }
        }
        assert_eq!(pages, ["ab", "c", "d", "e"]);
    }

    #[test]
    fn filters_know_the_fields_that_there_are() {
        let page = include_str!("../../../docs/clone-job.md");
        for (resource, of) in [
            ("MigratingVm", MIGRATING_VMS),
            ("ReplicationCycle", CYCLES),
            ("CloneJob", CLONE_JOBS),
            ("CutoverJob", CUTOVER_JOBS),
            ("Group", GROUPS),
            ("Operation", OPERATIONS),
        ] {
            let row = |line: &'static str| line.strip_prefix(&format!("| `{resource}."))?.split('`').next();
            let told: BTreeSet<&str> = page.lines().filter_map(row).collect();
            let known: BTreeSet<&str> = of.fields.iter().copied().flatten().copied().collect();
            assert_eq!(known, told, "{resource}");
        }
    }
}
