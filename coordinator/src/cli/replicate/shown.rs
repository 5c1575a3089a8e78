//! Replicas, as people see them.

use serde::Serialize;
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

/// A cycle, with the number that it has in its replication.
#[derive(Debug, Serialize)]
pub(super) struct Cycle<'a> {
    pub(super) number: u32,
    #[serde(flatten)]
    run: &'a Run,
}

/// The cycles of a replication that are remembered, the oldest first.
pub(super) fn cycles_of(view: &ReplicaView) -> impl Iterator<Item = Cycle<'_>> {
    view.numbered().map(|(number, run)| Cycle { number, run })
}

pub(super) fn list_cycles(cycles: &[Cycle<'_>]) -> String {
    let rows = cycles.iter().rev().map(|Cycle { number, run }| {
        [
            number.to_string(),
            run.job.to_string(),
            moment(run.began_at),
            or_dash(took(run)),
            ending(run),
            run.failure.as_ref().map_or_else(String::new, |failure| failure.message.clone()),
        ]
    });
    table(["NUMBER", "CYCLE", "BEGAN", "SECONDS", "STATE", "WHY"], rows)
}

pub(super) fn show_cycle(Cycle { number, run }: &Cycle<'_>) -> String {
    let head = pairs([
        ("number", number.to_string()),
        ("cycle", run.job.to_string()),
        ("began", moment(run.began_at)),
        ("ended", or_dash(run.ended_at.map(moment))),
        ("seconds", or_dash(took(run))),
        ("state", ending(run)),
    ]);
    let why = run.failure.as_ref();
    let why = why.map_or_else(String::new, |failure| format!("\n\nit failed: {failure}\n  → {}", failure.remedy));
    format!("{head}{why}")
}

fn took(run: &Run) -> Option<String> {
    run.ended_at.map(|at| format!("{:.1}", at.seconds_since(run.began_at)))
}

fn ending(run: &Run) -> String {
    run.state.map_or_else(|| "running".to_owned(), |state| state.to_string())
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
    use sterna_shared::job::JobState;

    use super::*;
    use crate::planner::example;

    #[test]
    fn cycles_have_the_numbers_that_they_had_from_the_first_on() {
        let host = "beta".parse().expect("a name");
        let view = ReplicaView::of(&host, Some(&example::replica()), None, None, example::later(60)).expect("a view");
        let run = |number, state| Run {
            job: example::job(number),
            turn: example::now(),
            began_at: example::now(),
            ended_at: Some(example::later(3)),
            state,
            failure: None,
        };
        let cycles = vec![run(1, Some(JobState::Completed)), run(2, None)];
        let view = ReplicaView { cycles, cycle_count: 70, ..view };
        let cycles: Vec<_> = cycles_of(&view).collect();
        assert_eq!(cycles.iter().map(|cycle| cycle.number).collect::<Vec<_>>(), [69, 70]);
        let list = list_cycles(&cycles);
        assert!(list.lines().nth(1).is_some_and(|line| line.starts_with("70")), "the newest first: {list}");
        let shown = show_cycle(&cycles[0]);
        assert!(shown.contains("69") && shown.contains("3.0") && shown.contains("completed"), "{shown}");
        let json = serde_json::to_value(&cycles[0]).expect("JSON");
        assert_eq!((&json["number"], &json["state"]), (&69.into(), &"completed".into()));
    }

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
