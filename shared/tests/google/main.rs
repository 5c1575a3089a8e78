//! The face of Google's Migrate to VMs: what it says of a clone job, a replication cycle and a replicated VM in each state,
//! letter by letter; names; and that docs/clone-job.md says of it what is so.

mod clone_jobs;
mod cutover_jobs;
mod cycles;
mod document;
mod facts;
mod jobs;
mod lists;
mod migrating_vms;
mod names;
mod operations;

use serde::Serialize;
use serde_json::Value;

fn value(resource: &impl Serialize) -> Value {
    serde_json::to_value(resource).expect("JSON")
}

/// Both objects in one; what the second has counts.
fn merged(mut base: Value, rest: Value) -> Value {
    let Value::Object(rest) = rest else { panic!("{rest} is no object") };
    base.as_object_mut().expect("an object").extend(rest);
    base
}
