//! Replications and clones as Google's Migrate to VMs has them, beside the faces themselves ([`sterna_shared::view::google`]): what
//! these are computed from, and what is asked for in that form, on the command line and of the coordinators.
//!
//! ```text
//!   a file, - ──▶ cli ─────▶ CloneBody, VmBody ──▶ MoveRequest, JobChange
//!   sterna.v1.api.cloneJobs.create … ──▶ request ──▶ answer ◀── Replications::known
//!                                           └──▶ CloneBody
//! ```

mod answer;
mod body;
mod clone_body;
mod filter;
mod request;
mod vm_body;

use sterna_shared::job::{JobStatus, Progress};
use sterna_shared::replica::ReplicaView;
use sterna_shared::time::Timestamp;
use sterna_shared::view::google::{Known, Rates};

pub(crate) use answer::{Wanted, done, not_found, read, reply, told};
pub(crate) use body::{BODY_LENGTH_MAX, BodyFault};
pub(crate) use clone_body::{CloneBody, name_of, parse_request};
pub(crate) use request::{Change, Create, CreateCutover};
pub(crate) use vm_body::VmBody;

/// All that the coordinators have told of replications and clones.
#[derive(Debug, Clone)]
pub struct Replications {
    pub(crate) jobs: Vec<JobStatus>,
    pub(crate) replicas: Vec<ReplicaView>,
    pub(crate) progress: Vec<(Progress, Rates)>,
    pub(crate) now: Timestamp,
}

impl Replications {
    /// The same for the face to look at.
    #[must_use]
    pub fn known(&self) -> Known<'_> {
        let Self { jobs, replicas, progress, now } = self;
        Known { jobs, replicas, progress, now: *now }
    }
}
