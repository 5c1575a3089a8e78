//! What crosses NATS: subjects, the envelope, and the messages in it.
//!
//! Messages are MessagePack with named fields, so that both ends may grow fields; the envelope's head is read without
//! touching the body. Nothing here knows of a NATS client.

mod agent_api;
mod api;
mod command;
mod envelope;
mod settings;
mod subject;

pub use agent_api::{AgentReply, AgentRequest};
pub use api::{
    ApiError, ApiErrorKind, ApiReply, ApiRequest, ConsoleChunk, HostView, JobAnswer, JobChange, SystemView, VmView,
};
pub use command::Command;
pub use envelope::{BODY_LENGTH_MAX, DEPTH_MAX, Envelope, EnvelopeError, VERSION, decode, encode};
pub use settings::{NATS_VERSION_ADVISED, NATS_VERSION_MIN, NatsSettings, version_numbers};
pub use subject::{
    BUCKET_HOSTS, BUCKET_JOBS, BUCKET_LEADER, BUCKET_PLANS, BUCKET_VMS, InvalidSubject, STREAM_ARCHIVE,
    STREAM_COMMANDS, STREAM_EVENTS, Subject,
};
