//! The operators' API at its edge: which endpoints there are, and requests and replies as bytes. Both are MessagePack in an envelope;
//! on the endpoints of Google's methods they may also be JSON, for programs that speak nothing else.

use sterna_shared::bus::{
    ApiError, ApiErrorKind, ApiReply, ApiRequest, BODY_LENGTH_MAX, Envelope, EnvelopeError, Subject,
};
use sterna_shared::id::{Epoch, JobId};
use sterna_shared::job::Refusal;
use sterna_shared::view::google::Method;

use crate::google;

/// Where requests of one kind are asked: resource and verb.
pub type Endpoint = (&'static str, &'static str);

/// The resource and verb of every request: one endpoint each. A test holds it against [`ApiRequest`].
pub const ENDPOINTS: &[Endpoint] = &[
    ("host", "list"),
    ("host", "show"),
    ("host", "set"),
    ("vm", "define"),
    ("vm", "list"),
    ("vm", "show"),
    ("vm", "start"),
    ("vm", "stop"),
    ("vm", "delete"),
    ("vm", "drop"),
    ("vm", "console"),
    ("vm", "resolve"),
    ("vm", "failover"),
    ("plan", "list"),
    ("plan", "drop"),
    ("replica", "list"),
    ("replica", "drop"),
    ("replica", "extend"),
    ("replica", "finalize"),
    ("job", "migrate"),
    ("job", "check"),
    ("job", "list"),
    ("job", "show"),
    ("job", "group"),
    ("job", "history"),
    ("job", "cancel"),
    ("job", "state"),
    ("job", "kill"),
    ("job", "answer"),
    ("job", "edit"),
    ("job", "bandwidth"),
    ("migratingVms", "get"),
    ("migratingVms", "list"),
    ("migratingVms", "patch"),
    ("migratingVms", "pauseMigration"),
    ("migratingVms", "resumeMigration"),
    ("migratingVms", "extendMigration"),
    ("migratingVms", "finalizeMigration"),
    ("replicationCycles", "get"),
    ("replicationCycles", "list"),
    ("cloneJobs", "create"),
    ("cloneJobs", "cancel"),
    ("cloneJobs", "get"),
    ("cloneJobs", "list"),
    ("cutoverJobs", "create"),
    ("cutoverJobs", "cancel"),
    ("cutoverJobs", "get"),
    ("cutoverJobs", "list"),
    ("groups", "get"),
    ("groups", "list"),
    ("groups", "addGroupMigration"),
    ("groups", "removeGroupMigration"),
    ("operations", "get"),
    ("operations", "list"),
    ("system", "show"),
];

/// The longest request, in bytes. What it asks for goes into events and statuses, which have to go into one message.
const REQUEST_LENGTH_MAX: usize = BODY_LENGTH_MAX / 4;

/// Reads a request that was asked at an endpoint. Operators may be permitted some endpoints and not others, by the broker, so that what is
/// asked elsewhere than it belongs is refused.
///
/// # Errors
/// What to answer where it is none, or is asked at the wrong place.
pub fn read(endpoint: Endpoint, body: &[u8]) -> Result<ApiRequest, ApiError> {
    if body.len() > REQUEST_LENGTH_MAX {
        let message = format!("the request has {} bytes; {REQUEST_LENGTH_MAX} are the most", body.len());
        return Err(fault(ApiErrorKind::Invalid, message, "ask for less at once"));
    }
    if let Some(method) = Method::of(endpoint).filter(|_| is_json(endpoint, body)) {
        let body = String::from_utf8(body.to_vec()).map_err(|error| {
            let message = format!("the request of {method} is no text: {error}");
            fault(ApiErrorKind::Invalid, message, "give the method's request in JSON, in UTF-8")
        })?;
        return Ok(ApiRequest::Google { method, body, job: JobId::from_uuid(uuid::Uuid::now_v7()) });
    }
    let read = Envelope::open(body).and_then(|envelope| envelope.message("api_request"));
    let request: ApiRequest = read.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        fault(
            ApiErrorKind::Invalid,
            format!("the request cannot be read: {error}{cause}"),
            "use a `sterna` of the coordinator's version (`sterna --version`)",
        )
    })?;
    let belongs = request.subject_tokens();
    if belongs == endpoint {
        return Ok(request);
    }
    let subject = |(resource, verb): Endpoint| Subject::Api(resource.into(), verb.into());
    Err(fault(
        ApiErrorKind::Invalid,
        format!("the request belongs on {} and came on {}", subject(belongs), subject(endpoint)),
        "ask where it belongs, if the broker permits you to",
    ))
}

/// Whether a request is JSON, and its answer is to be: at an endpoint of Google's methods all that is no envelope. An envelope is a map
/// of MessagePack, which begins with no character of ASCII; nothing at all is a request without fields.
#[must_use]
pub fn is_json(endpoint: Endpoint, body: &[u8]) -> bool {
    Method::of(endpoint).is_some() && body.first().is_none_or(u8::is_ascii)
}

/// A reply as it goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The sealed reply, or JSON.
    pub body: Vec<u8>,
    /// The service error's number and text, where it is one.
    pub error: Option<(u16, String)>,
    /// What of a request in JSON was left aside. In an envelope that is said beside the answer.
    pub warnings: Vec<String>,
}

/// Writes the answer to a request that [is JSON](is_json).
#[must_use]
pub fn write_json(reply: ApiReply) -> Written {
    let error = match reply {
        ApiReply::Google { body, warnings } if body.len() <= BODY_LENGTH_MAX => {
            return Written { body: body.into_bytes(), error: None, warnings };
        }
        ApiReply::Error { error } => error,
        _ => too_long(),
    };
    let body = google::told(&error).to_string().into_bytes();
    Written { body, error: Some((code(error.kind), error.message)), warnings: Vec::new() }
}

/// Writes a reply, and the service error that goes into its headers.
///
/// Of a list that is too long for one message as much is told as has room, and that there is more.
///
/// # Errors
/// [`EnvelopeError`] where not even the error about it can be written.
pub fn write(sender: &str, epoch: Epoch, mut reply: ApiReply) -> Result<Written, EnvelopeError> {
    let body = loop {
        match Envelope::seal("api_reply", sender, epoch, &reply) {
            Err(EnvelopeError::TooLong { .. }) if shorten(&mut reply) => {}
            Err(EnvelopeError::TooLong { .. }) => reply = ApiReply::Error { error: too_long() },
            sealed => break sealed?,
        }
    };
    let header = match &reply {
        ApiReply::Error { error } => Some((code(error.kind), error.message.clone())),
        _ => None,
    };
    Ok(Written { body, error: header, warnings: Vec::new() })
}

fn too_long() -> ApiError {
    fault(ApiErrorKind::Failed, "the answer is too long for one message", "ask for less at a time")
}

/// An error with one hint.
pub(crate) fn fault(kind: ApiErrorKind, message: impl Into<String>, hint: impl Into<String>) -> ApiError {
    ApiError { kind, message: message.into(), hints: vec![hint.into()], refusals: vec![] }
}

/// A plan that cannot be made.
pub(crate) fn refused(message: impl Into<String>, refusals: Vec<Refusal>) -> ApiError {
    ApiError { kind: ApiErrorKind::Refused, message: message.into(), hints: vec![], refusals }
}

/// Leaves the second half of a list out, and says so; where that is no list, or of one, it cannot.
fn shorten(reply: &mut ApiReply) -> bool {
    let mut list = match std::mem::replace(reply, ApiReply::Done) {
        ApiReply::Part { list } => list,
        whole => Box::new(whole),
    };
    let count = list.listed().unwrap_or(0);
    list.keep(0..count / 2);
    *reply = ApiReply::Part { list };
    count > 1
}

/// The numbers of HTTP, which NATS services use too.
const fn code(kind: ApiErrorKind) -> u16 {
    match kind {
        ApiErrorKind::Invalid => 400,
        ApiErrorKind::NotFound => 404,
        ApiErrorKind::Refused => 409,
        ApiErrorKind::Failed => 500,
        ApiErrorKind::Unreachable => 503,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Fleet, vm_view};
    use crate::planner::example;
    use crate::schema::requests;
    use sterna_shared::host::LimitsChange;

    #[test]
    fn what_is_no_request_is_told_so() {
        let error = read(("host", "list"), b"hello").expect_err("no request");
        assert_eq!(error.kind, ApiErrorKind::Invalid);
        let other = Envelope::seal("command", "x", Epoch(0), &ApiRequest::HostList).expect("sealed");
        assert!(read(("host", "list"), &other).expect_err("another kind").message.contains("\"command\""));
    }

    #[test]
    fn a_request_is_taken_where_it_belongs_and_nowhere_else() {
        for (request, _) in requests() {
            let sealed = Envelope::seal("api_request", "x", Epoch(0), &request).expect("sealed");
            for endpoint in ENDPOINTS {
                match read(*endpoint, &sealed) {
                    Ok(read) => assert_eq!((&read, *endpoint), (&request, request.subject_tokens())),
                    Err(error) => {
                        assert_ne!(*endpoint, request.subject_tokens());
                        assert_eq!(error.kind, ApiErrorKind::Invalid);
                    }
                }
            }
        }
        let delete = ApiRequest::VmDelete { vm: "web".into(), delete_disks: true };
        let sealed = Envelope::seal("api_request", "x", Epoch(0), &delete).expect("sealed");
        let error = read(("job", "list"), &sealed).expect_err("it does not belong there");
        assert!(error.message.contains("sterna.v1.api.vm.delete") && error.message.ends_with("sterna.v1.api.job.list"));
    }

    #[test]
    fn what_is_no_envelope_is_json_where_google_s_methods_are_asked() {
        let method = Method::CloneJobsList;
        for body in ["", "{}", " {\"parent\": 7}", "hello"] {
            let request = read(method.tokens(), body.as_bytes()).expect("a request");
            let ApiRequest::Google { method: read, body: text, job } = request else { panic!("another request") };
            assert_eq!((read, text.as_str(), job.uuid().is_nil()), (method, body, false));
            assert!(!is_json(("job", "list"), body.as_bytes()), "no other endpoint takes it");
        }
        let broken = read(method.tokens(), b"{\"parent\": \"\xff\"}").expect_err("no text");
        assert!(broken.message.starts_with("the request of cloneJobs.list is no text: "), "{}", broken.message);
        let request = ApiRequest::Google { method, body: "{}".into(), job: example::job(1) };
        let sealed = Envelope::seal("api_request", "x", Epoch(0), &request).expect("sealed");
        assert!(!is_json(method.tokens(), &sealed));
        assert_eq!(read(method.tokens(), &sealed), Ok(request));
    }

    #[test]
    fn an_answer_in_json_is_the_resource_or_says_why_not() {
        let reply = ApiReply::Google { body: "{}".into(), warnings: vec!["a".into()] };
        let expected = Written { body: b"{}".to_vec(), error: None, warnings: vec!["a".into()] };
        assert_eq!(write_json(reply), expected);
        let told = |reply| {
            let Written { body, error, .. } = write_json(reply);
            let told: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            (error.map(|(code, _)| code), told["error"]["message"].as_str().unwrap_or_default().to_owned())
        };
        let error = fault(ApiErrorKind::NotFound, "there is no such job", "see the list");
        assert_eq!(told(ApiReply::Error { error }), (Some(404), "there is no such job; see the list".to_owned()));
        let long = ApiReply::Google { body: "x".repeat(BODY_LENGTH_MAX + 1), warnings: vec![] };
        assert_eq!(told(long).0, Some(500));
    }

    #[test]
    fn every_request_has_an_endpoint() {
        let vm = || "web".to_owned();
        for request in [
            ApiRequest::HostList,
            ApiRequest::HostSet { host: "a".parse().expect("a name"), change: LimitsChange::default(), reset: true },
            ApiRequest::VmList,
            ApiRequest::VmStart { vm: vm() },
            ApiRequest::VmDrop { vm: vm(), host: "a".parse().expect("a name") },
            ApiRequest::VmResolve { vm: vm(), fenced: "a".parse().expect("a name") },
            ApiRequest::VmFailover {
                vm: vm(),
                fenced: "a".parse().expect("a name"),
                target: "b".parse().expect("a name"),
                snapshot: 1,
            },
            ApiRequest::Migrate {
                request: example::request(),
                dry_run: true,
                job: example::job(1),
                policy: Box::default(),
            },
            ApiRequest::ReplicaList,
            ApiRequest::ReplicaDrop { vm: vm(), host: "a".parse().expect("a name") },
            ApiRequest::ReplicaExtend { vm: vm(), by_seconds: None },
            ApiRequest::ReplicaFinalize { vm: vm() },
            ApiRequest::JobBandwidth { job: example::job(1), bandwidth: None },
            ApiRequest::SystemShow,
        ] {
            assert!(ENDPOINTS.contains(&request.subject_tokens()), "{request:?}");
        }
    }

    #[test]
    fn a_list_that_is_too_long_is_cut() {
        let mut fleet = Fleet::default();
        let mut inventory = example::inventory("alpha");
        inventory.vms = vec![example::report(&example::vm("web"))];
        fleet.heard(inventory, example::now(), std::time::Duration::ZERO);
        let (member, report) = fleet.find("web").expect("there");
        let vms = vec![vm_view(member, report); 5000];
        let Written { body, error, .. } = write("one", Epoch(1), ApiReply::Vms { vms }).expect("written");
        assert!(body.len() <= sterna_shared::bus::BODY_LENGTH_MAX && error.is_none());
        let reply: ApiReply = Envelope::open(&body).and_then(|e| e.message("api_reply")).expect("a reply");
        let ApiReply::Part { list } = reply else { panic!("it does not say that there is more") };
        assert!(list.listed().is_some_and(|count| count > 500));
    }
}
