//! Faces: a job as the programs of another product expect to see it.
//!
//! ```text
//!   JobStatus (fold of events) ─┐
//!   Progress  (latest, a hint) ─┼─▶ cim::MigrationJob ─▶ JSON, CIM-XML
//!   Contacts  (who is there)   ─┘
//!
//!   JobStatus of a replication, its runs, its clones, Replica ─▶ google::MigratingVm, ReplicationCycle, CloneJob ─▶ JSON
//! ```
//!
//! A face decides nothing and keeps nothing: it is computed from what is known, each time it is asked for, so that there is
//! one model of a job and no second one to drift away from it. It costs that a face can only say what the model knows; where
//! the other product has a property that the model has not, the property's documentation says why it is empty. Names and
//! numbers are the other product's to the letter, also where Sterna has another word.

pub mod cim;
pub mod google;
