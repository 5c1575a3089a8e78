//! The vocabulary of Sterna: what a VM, a host, a job and a plan are, and who may run a VM.
//!
//! Nothing here performs I/O or reads a clock: instants come in as [`time::Timestamp`] values, so that the planner, the
//! folds and the ownership machine give the same answer to the same input, in production, in tests and in the model.
//!
//! ```text
//!   id, units, time        words that everything else is made of
//!   vm, host               what moves, and between what
//!   ownership/             who may run a VM: the table that is model-checked
//!   job/                   request → plan → events → status
//!   bus/                   subjects, envelope, and the messages that cross NATS
//!   peer/                  hello, messages and frames that cross between two agents
//!   probe                  what a host measures for the checks of a move
//!   replica                a VM's disks at another host, as they were at points in time
//!   rehearsal              what a clone has to answer that is booted to see whether it would
//!   view/                  a job as programs of other products expect it
//! ```

pub mod bus;
pub mod host;
pub mod id;
pub mod job;
pub mod ownership;
pub mod peer;
pub mod planned;
pub mod probe;
pub mod rehearsal;
pub mod replica;
pub mod time;
pub mod units;
pub mod view;
pub mod vm;
