//! A machine's guest, measured from outside: what it has, and how fast it dirties it. Nothing is changed by it.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use sterna_shared::probe::DiskUse;
use sterna_shared::units::{Bandwidth, ByteCount};
use sterna_shared::vm::DiskSpec;
use tokio::time::{Instant, sleep};

use super::command_line::{format_node, spare_format_node};
use super::qmp::QmpError;
use super::{Machine, MachineError};

/// The shortest time that QEMU measures a dirty rate for.
const DIRTY_TIME_MIN: Duration = Duration::from_millis(50);
/// The longest.
const DIRTY_TIME_MAX: Duration = Duration::from_secs(60);
/// The shortest where QEMU does not know `calc-time-unit`, which came with 8.2, and counts in seconds.
const DIRTY_TIME_OLD: Duration = Duration::from_secs(1);
/// How often a measurement is looked after once its time is over.
const DIRTY_LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Pages that are sampled of the whole memory, as far as QEMU's own limits for each GiB allow: each is read twice.
const SAMPLES: u64 = 16384;
/// The least pages of a GiB that QEMU samples.
const SAMPLES_PER_GIB_MIN: u64 = 128;
/// The most.
const SAMPLES_PER_GIB_MAX: u64 = 16384;

/// How far a measurement of the dirty rate is, in QEMU's words.
#[derive(Debug, Deserialize)]
struct DirtyRate {
    status: String,
    /// MiB a second.
    #[serde(rename = "dirty-rate")]
    rate: Option<i64>,
}

impl Machine {
    /// How many bytes of memory the guest has, plugged ones included.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn memory_size(&self) -> Result<ByteCount, MachineError> {
        #[derive(Deserialize)]
        struct Summary {
            #[serde(rename = "base-memory")]
            base: ByteCount,
            #[serde(rename = "plugged-memory", default)]
            plugged: ByteCount,
        }
        let Summary { base, plugged } = self.ask("query-memory-size-summary", Value::Null).await?;
        Ok(base.plus(plugged))
    }

    /// How many bytes of its memory the guest dirties in a second, of `size` in all, looked at for `time`. Pages are sampled: the
    /// guest is not slowed down, and a page that is written twice counts once. QEMU tells whole MiB.
    ///
    /// `time` is held to what QEMU takes, 50 ms to 60 s; a QEMU before 8.2 takes a second. It may take `overtime` more to read
    /// its samples.
    ///
    /// # Errors
    /// [`MachineError::NotMeasured`] after that; and what QEMU says where it does not begin, as while another measurement is
    /// under way.
    pub async fn memory_dirty_rate(
        &self,
        size: ByteCount,
        time: Duration,
        overtime: Duration,
    ) -> Result<Bandwidth, MachineError> {
        let time = time.clamp(DIRTY_TIME_MIN, DIRTY_TIME_MAX);
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let samples = samples_per_gib(size);
        let arguments = json!({ "calc-time": time_ms, "calc-time-unit": "millisecond", "sample-pages": samples });
        let time = match self.tell("calc-dirty-rate", arguments).await {
            Ok(()) => time,
            // Its reason is not to be taken apart: where it is another one, QEMU gives it again.
            Err(MachineError::Qmp(QmpError::Refused { class, .. })) if class == "GenericError" => {
                let arguments = json!({ "calc-time": DIRTY_TIME_OLD.as_secs(), "sample-pages": samples });
                self.tell("calc-dirty-rate", arguments).await?;
                DIRTY_TIME_OLD
            }
            Err(error) => return Err(error),
        };
        let deadline = Instant::now() + time + overtime;
        sleep(time).await;
        loop {
            let DirtyRate { status, rate } = self.ask("query-dirty-rate", Value::Null).await?;
            if let ("measured", Some(rate)) = (status.as_str(), rate) {
                return Ok(Bandwidth(u64::try_from(rate).unwrap_or(0).saturating_mul(1 << 20)));
            }
            if Instant::now() >= deadline {
                return Err(MachineError::NotMeasured { what: "dirty rate", wait: time + overtime });
            }
            sleep(DIRTY_LOOK_INTERVAL).await;
        }
    }

    /// How many bytes the guest writes to all of its disks in a second, looked at for `time`.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn disk_write_rate(&self, time: Duration) -> Result<Bandwidth, MachineError> {
        let (before, begun) = (self.written_bytes().await?, Instant::now());
        sleep(time).await;
        let (after, took) = (self.written_bytes().await?, begun.elapsed());
        Ok(rate(after.0.saturating_sub(before.0), took))
    }

    /// What the images of these disks take, in their order. Disks that this QEMU does not have are left out.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn disk_use(&self, disks: &[DiskSpec]) -> Result<Vec<DiskUse>, MachineError> {
        let nodes = self.nodes().await?;
        let of = |disk: &DiskSpec| {
            let names = [format_node(&disk.name), spare_format_node(&disk.name)];
            let node = names.iter().find_map(|name| nodes.iter().find(|node| node.name == *name))?;
            // Of a device the system says that it takes nothing; an image that does take nothing is treated like one, and so
            // reckoned with in full.
            let allocated = node.image.allocated.filter(|allocated| allocated.0 > 0);
            Some(DiskUse { disk: disk.name.clone(), size: node.image.size, allocated })
        };
        Ok(disks.iter().filter_map(of).collect())
    }
}

/// So many for each GiB that all of them together are about [`SAMPLES`].
fn samples_per_gib(size: ByteCount) -> u64 {
    (SAMPLES / size.0.div_ceil(1 << 30).max(1)).clamp(SAMPLES_PER_GIB_MIN, SAMPLES_PER_GIB_MAX)
}

fn rate(bytes: u64, time: Duration) -> Bandwidth {
    let per_second = u128::from(bytes) * 1_000_000 / time.as_micros().max(1);
    Bandwidth(u64::try_from(per_second).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::hypervisor::qemu::qmp::Qmp;

    const WAIT: Duration = Duration::from_secs(10);

    /// A monitor that answers with these lines in turn, and returns what it was asked.
    async fn scripted(answers: &[&str]) -> (Machine, JoinHandle<Vec<Value>>) {
        let negotiated = "\"return\": {}";
        let answers: Vec<String> = [negotiated].iter().chain(answers).map(ToString::to_string).collect();
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let monitor = tokio::spawn(async move {
            let (reader, mut writer) = tokio::io::split(theirs);
            let mut lines = BufReader::new(reader).lines();
            let mut asked = Vec::new();
            writer.write_all(b"{\"QMP\": {}}\n").await.expect("written");
            for answer in answers {
                let Some(line) = lines.next_line().await.expect("read") else { break };
                let command: Value = serde_json::from_str(&line).expect("JSON");
                writer
                    .write_all(format!("{{{answer}, \"id\": {}}}\n", command["id"]).as_bytes())
                    .await
                    .expect("written");
                asked.push(command);
            }
            asked
        });
        (Machine::new(Qmp::over(ours, WAIT).await.expect("a monitor")), monitor)
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_qemu_is_given_the_second_that_it_needs() {
        let (machine, monitor) = scripted(&[
            r#""error": { "class": "GenericError", "desc": "Parameter 'calc-time-unit' is unexpected" }"#,
            r#""return": {}"#,
            r#""return": { "status": "measuring", "start-time": 1, "calc-time": 1, "sample-pages": 512 }"#,
            r#""return": { "status": "measured", "dirty-rate": 7, "start-time": 1, "calc-time": 1, "new-in-99": {} }"#,
        ])
        .await;
        let begun = Instant::now();
        let rate = machine.memory_dirty_rate(ByteCount(1 << 30), Duration::from_millis(400), WAIT).await;
        assert_eq!(rate.expect("measured"), Bandwidth(7 << 20));
        assert!(begun.elapsed() >= DIRTY_TIME_OLD);
        let asked = monitor.await.expect("it ends");
        assert_eq!(asked[1]["arguments"]["calc-time"], 400);
        assert_eq!(asked[2]["arguments"], json!({ "calc-time": 1, "sample-pages": 16384 }));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_measured_is_an_error_and_never_a_number() {
        let none = r#""error": { "class": "CommandNotFound", "desc": "no such command" }"#;
        let (machine, _monitor) = scripted(&[none]).await;
        let rate = machine.memory_dirty_rate(ByteCount(0), Duration::ZERO, WAIT).await;
        assert!(matches!(rate, Err(MachineError::Qmp(QmpError::Refused { .. }))), "{rate:?}");
        let (machine, _monitor) = scripted(&[r#""return": {}"#, r#""return": { "status": "dreaming" }"#]).await;
        let rate = machine.memory_dirty_rate(ByteCount(0), Duration::ZERO, Duration::ZERO).await;
        assert!(matches!(rate, Err(MachineError::NotMeasured { .. })), "{rate:?}");
    }

    #[test]
    fn samples_are_within_what_qemu_takes_whatever_the_size() {
        let per_gib = |gib: u64| samples_per_gib(ByteCount(gib << 30));
        assert_eq!((per_gib(0), per_gib(1), per_gib(16), per_gib(1 << 20)), (16384, 16384, 1024, 128));
        assert_eq!(samples_per_gib(ByteCount(u64::MAX)), 128);
    }

    #[tokio::test(start_paused = true)]
    async fn writes_are_counted_over_the_time_between_two_looks() {
        let (machine, _monitor) = scripted(&[
            r#""return": [{ "stats": { "wr_bytes": 100, "new-in-99": 1 } }, { "stats": { "wr_bytes": 7 } }]"#,
            r#""return": [{ "stats": { "wr_bytes": 400 } }, { "stats": { "wr_bytes": 107 } }]"#,
            r#""return": [{ "stats": { "wr_bytes": 400 } }]"#,
            r#""return": []"#,
        ])
        .await;
        let time = Duration::from_millis(500);
        assert_eq!(machine.disk_write_rate(time).await.expect("a rate"), Bandwidth(800));
        assert_eq!(machine.disk_write_rate(time).await.expect("a rate"), Bandwidth(0), "a disk has gone");
        assert_eq!(rate(1, Duration::ZERO), Bandwidth(1_000_000));
        assert_eq!(rate(u64::MAX, Duration::from_millis(1)), Bandwidth(u64::MAX));
    }
}
