//! The operators' API at its edge: which endpoints there are, and requests and replies as bytes.

use sterna_shared::bus::{ApiError, ApiErrorKind, ApiReply, ApiRequest, Envelope, EnvelopeError, Subject};
use sterna_shared::id::Epoch;
use sterna_shared::job::Refusal;

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
    ("system", "show"),
];

/// Reads a request that was asked at an endpoint. Operators may be permitted some endpoints and not others, by the broker, so that what is
/// asked elsewhere than it belongs is refused.
///
/// # Errors
/// What to answer where it is none, or is asked at the wrong place.
pub fn read(endpoint: Endpoint, body: &[u8]) -> Result<ApiRequest, ApiError> {
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

/// A reply as it goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The sealed reply.
    pub body: Vec<u8>,
    /// The service error's number and text, where it is one.
    pub error: Option<(u16, String)>,
}

/// Writes a reply, and the service error that goes into its headers.
///
/// A list that is too long for one message is cut from its end, the oldest or last.
///
/// # Errors
/// [`EnvelopeError`] where not even the error about it can be written.
pub fn write(sender: &str, epoch: Epoch, mut reply: ApiReply) -> Result<Written, EnvelopeError> {
    let body = loop {
        match Envelope::seal("api_reply", sender, epoch, &reply) {
            Err(EnvelopeError::TooLong { .. }) if shorten(&mut reply) => {}
            Err(EnvelopeError::TooLong { .. }) => {
                let message = "the answer is too long for one message";
                reply = ApiReply::Error { error: fault(ApiErrorKind::Failed, message, "ask for less at a time") };
            }
            sealed => break sealed?,
        }
    };
    let header = match &reply {
        ApiReply::Error { error } => Some((code(error.kind), error.message.clone())),
        _ => None,
    };
    Ok(Written { body, error: header })
}

/// An error with one hint.
pub(crate) fn fault(kind: ApiErrorKind, message: impl Into<String>, hint: impl Into<String>) -> ApiError {
    ApiError { kind, message: message.into(), hints: vec![hint.into()], refusals: vec![] }
}

/// A plan that cannot be made.
pub(crate) fn refused(message: impl Into<String>, refusals: Vec<Refusal>) -> ApiError {
    ApiError { kind: ApiErrorKind::Refused, message: message.into(), hints: vec![], refusals }
}

fn shorten(reply: &mut ApiReply) -> bool {
    fn halve<T>(list: &mut Vec<T>) -> bool {
        let long = list.len() > 1;
        list.truncate(list.len() / 2);
        long
    }
    match reply {
        ApiReply::Jobs { jobs, progress } => {
            let is_shorter = halve(jobs);
            progress.retain(|progress| jobs.iter().any(|status| status.job == progress.job));
            is_shorter
        }
        ApiReply::Hosts { hosts } => halve(hosts),
        ApiReply::Vms { vms } => halve(vms),
        ApiReply::Planned { planned } => halve(planned),
        ApiReply::Replicas { replicas } => halve(replicas),
        _ => false,
    }
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
        let Written { body, error } = write("one", Epoch(1), ApiReply::Vms { vms }).expect("written");
        assert!(body.len() <= sterna_shared::bus::BODY_LENGTH_MAX && error.is_none());
        let reply: ApiReply = Envelope::open(&body).and_then(|e| e.message("api_reply")).expect("a reply");
        assert!(matches!(reply, ApiReply::Vms { vms } if vms.len() > 500));
    }
}
