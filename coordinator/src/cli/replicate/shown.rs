//! Replicas, as people see them.

use sterna_shared::job::Run;
use sterna_shared::replica::ReplicaView;

use crate::cli::output::{moment, or_dash, pairs, table};
use crate::cli::vm::yes_or_no;
use crate::cli::{labels, lifetime};

pub(super) fn list(views: &[ReplicaView]) -> String {
    let rows = views.iter().map(|view| {
        let replica = view.replica.as_ref();
        [
            view.name.to_string(),
            format!("{} → {}", view.source, view.host),
            view.state.to_string(),
            replica.map_or(0, |replica| replica.snapshots().count()).to_string(),
            or_dash(view.age_seconds.map(span)),
            yes_or_no(view.late).to_owned(),
            or_dash(view.idle_seconds.map(|idle| span(idle.into()))),
            lifetime::expiry(view),
            or_dash(view.replication),
        ]
    });
    table(["VM", "FROM → TO", "STATE", "SNAPSHOTS", "AGE", "LATE", "IDLE", "EXPIRES", "JOB"], rows)
}

pub(super) fn show(view: &ReplicaView) -> String {
    let replica = view.replica.as_ref();
    let head = pairs([
        ("vm", format!("{} ({})", view.name, view.vm)),
        ("replication", format!("{} → {}", view.source, view.host)),
        ("state", view.state.to_string()),
        ("job", or_dash(view.replication)),
        ("pause between cycles", or_dash(view.idle_seconds.map(|idle| span(idle.into())))),
        ("expires", lifetime::expiry(view)),
        ("labels", labels::told(&view.labels)),
        ("age of the latest snapshot", or_dash(view.age_seconds.map(span))),
        ("late", yes_or_no(view.late).to_owned()),
    ]);
    let snapshots = table(
        ["SNAPSHOT", "TAKEN", "CONSISTENCY", "DAMAGED", "WRITTEN", "CYCLE"],
        replica.into_iter().flat_map(|replica| replica.snapshots().rev()).map(|snapshot| {
            [
                snapshot.number.to_string(),
                moment(snapshot.taken_at),
                format!("{:?}", snapshot.consistency).to_lowercase(),
                yes_or_no(snapshot.damaged).to_owned(),
                snapshot.written.to_string(),
                snapshot.cycle.to_string(),
            ]
        }),
    );
    let disks = table(
        ["DISK", "POOL", "SIZE"],
        replica
            .into_iter()
            .flat_map(|replica| &replica.disks)
            .map(|disk| [disk.name.to_string(), disk.pool.to_string(), disk.size.to_string()]),
    );
    let why = view.cycles.last().and_then(|cycle| cycle.failure.as_ref());
    let why = why
        .map_or_else(String::new, |failure| format!("\n\nthe latest cycle failed: {failure}\n  → {}", failure.remedy));
    format!("{head}\n\n{snapshots}\n\n{disks}{why}")
}

pub(super) fn cycles(runs: &[Run]) -> String {
    let rows = runs.iter().rev().map(|run| {
        [
            run.job.to_string(),
            moment(run.began_at),
            run.ended_at.map_or_else(|| "-".to_owned(), |at| format!("{:.1}", at.seconds_since(run.began_at))),
            run.state.map_or_else(|| "running".to_owned(), |state| state.to_string()),
            run.failure.as_ref().map_or_else(String::new, |failure| failure.message.clone()),
        ]
    });
    table(["CYCLE", "BEGAN", "SECONDS", "STATE", "WHY"], rows)
}

/// A span of time for people, in the largest unit that tells enough.
pub(in crate::cli) fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::example;

    #[test]
    fn people_see_how_a_replica_stands() {
        let host = "beta".parse().expect("a name");
        let view = ReplicaView::of(&host, Some(&example::replica()), None, None, example::later(60)).expect("a view");
        let (list, show) = (list(std::slice::from_ref(&view)), show(&view));
        assert!(list.contains("alpha → beta") && list.contains("READY") && list.contains("5 min"), "{list}");
        let expires = ReplicaView { expires_at: Some(example::now()), expires_soon: true, ..view };
        assert!(super::list(&[expires]).contains("UTC, soon"));
        assert!(show.contains("crash") && show.contains("7 MiB") && show.contains("fast"), "{show}");
        let spans = [119, 120, 7_200, 172_800].map(span);
        assert_eq!(spans, ["119 s", "2 min", "2 h", "2 d"]);
    }
}
