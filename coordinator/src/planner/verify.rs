//! Verifications: a replica is read through at the host that has it. The replicated VM is left alone, and so is its host.

use sterna_shared::job::{JobKind, JobStatus, MoveRequest, Plan, Refusal, RefusalCode};
use sterna_shared::replica::Replica;

use super::check::{offline, refusal};
use super::replica::{find, plan};
use super::{Draft, Seeds};
use crate::fleet::{Fleet, Member};

/// What a request for a verification would come to, and all that speaks against it now.
pub(super) fn draft<'a>(
    fleet: &'a Fleet,
    jobs: impl IntoIterator<Item = &'a JobStatus>,
    request: &'a MoveRequest,
    seeds: Seeds,
) -> Draft {
    let (member, replica) = match find(fleet, request) {
        Ok(found) => found,
        Err(refusal) => return Draft { plan: None, refusals: vec![refusal] },
    };
    let others: Vec<_> =
        jobs.into_iter().filter(|status| status.job != seeds.job && !status.state.is_final()).collect();
    let mut refusals: Vec<Refusal> = Some(member).filter(|member| !member.online).map(offline).into_iter().collect();
    refusals.extend(without_snapshot(member, replica));
    refusals.extend(in_use(member, replica, &others));
    Draft { plan: Some(plan(member, JobKind::Verify, replica.vm.clone(), request, seeds)), refusals }
}

fn without_snapshot(member: &Member, replica: &Replica) -> Option<Refusal> {
    let (name, host) = (&replica.vm.name, &member.inventory.host);
    replica.latest().is_none().then(|| {
        refusal(
            RefusalCode::SnapshotUnknown,
            format!("the replica of VM {name} at {host} has no complete snapshot yet"),
            format!("wait until its first cycle is over: `sterna replicate show {name}`"),
        )
    })
}

/// What changes its layers, or stands on them soon.
fn in_use(member: &Member, replica: &Replica, others: &[&JobStatus]) -> Option<Refusal> {
    let (id, name, host) = (replica.vm.id, &replica.vm.name, &member.inventory.host);
    let uses = |status: &&&JobStatus| {
        let Plan { kind, vm, target, clone, .. } = &status.plan;
        let of = clone.as_ref().map_or(vm.id, |clone| clone.replica);
        let changes = matches!(
            kind,
            JobKind::Replicate | JobKind::Clone | JobKind::Rehearse | JobKind::Verify | JobKind::Cutover
        );
        changes && of == id && target.id == *host
    };
    others.iter().find(uses).map(|status| {
        let job = status.job;
        refusal(
            RefusalCode::VmInJob,
            format!("the replica of VM {name} at {host} is in job {job}"),
            format!("wait for it (`sterna job watch {job}`), or cancel it (`sterna job cancel {job}`)"),
        )
    })
}
