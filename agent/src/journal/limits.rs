//! What operators set of the host's limits while it runs: it outlives the agent, and goes before agent.toml.
//!
//! One fact a setting; one that is not there was not set.

use sterna_shared::host::LimitsChange;

use super::{FACTS, Journal, JournalError, read_error, write_error};

const FACT_ENABLED: &str = "limits.enabled";
const FACT_OUTBOUND: &str = "limits.outbound_moves_max";
const FACT_INBOUND: &str = "limits.inbound_moves_max";
const FACT_STORAGE: &str = "limits.storage_moves_max";
const FACT_LANES: &str = "limits.lanes_max";

impl Journal {
    /// What was set of the host's limits.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn limits_set(&self) -> Result<LimitsChange, JournalError> {
        self.file.read(|transaction| {
            let facts = transaction.open_table(FACTS).map_err(read_error)?;
            let number = |name: &str| -> Result<Option<u64>, JournalError> {
                Ok(facts.get(name).map_err(read_error)?.map(|value| value.value()))
            };
            // Only what fits was written; what does not is nothing that this build could keep to.
            let count = |name: &str| -> Result<Option<u16>, JournalError> {
                Ok(number(name)?.and_then(|value| u16::try_from(value).ok()))
            };
            Ok(LimitsChange {
                enabled: number(FACT_ENABLED)?.map(|value| value != 0),
                outbound_moves_max: count(FACT_OUTBOUND)?,
                inbound_moves_max: count(FACT_INBOUND)?,
                storage_moves_max: count(FACT_STORAGE)?,
                lanes_max: number(FACT_LANES)?.and_then(|value| u8::try_from(value).ok()),
            })
        })
    }

    /// Sets limits; what is left out stays as it was set before, or, with `reset`, is as if it had never been set.
    ///
    /// # Errors
    /// The journal cannot be written; everything is as it was.
    pub async fn set_limits(&self, change: LimitsChange, reset: bool) -> Result<(), JournalError> {
        let facts = [
            (FACT_ENABLED, change.enabled.map(u64::from)),
            (FACT_OUTBOUND, change.outbound_moves_max.map(u64::from)),
            (FACT_INBOUND, change.inbound_moves_max.map(u64::from)),
            (FACT_STORAGE, change.storage_moves_max.map(u64::from)),
            (FACT_LANES, change.lanes_max.map(u64::from)),
        ];
        self.write(move |tables| {
            let mut table = tables.open_table(FACTS).map_err(write_error)?;
            for (name, value) in facts {
                match value {
                    Some(value) => table.insert(name, value).map_err(write_error)?,
                    None if reset => table.remove(name).map_err(write_error)?,
                    None => None,
                };
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_set_outlives_the_agent_until_it_is_reset() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal.redb");
        let open = || Journal::open(&path).expect("opened");
        assert_eq!(open().limits_set().expect("read"), LimitsChange::default());
        let first = LimitsChange { enabled: Some(false), inbound_moves_max: Some(0), ..LimitsChange::default() };
        open().set_limits(first, false).await.expect("set");
        assert_eq!(open().limits_set().expect("read"), first);
        let second = LimitsChange {
            enabled: Some(true),
            outbound_moves_max: Some(u16::MAX),
            storage_moves_max: Some(1),
            lanes_max: Some(3),
            ..LimitsChange::default()
        };
        open().set_limits(second, false).await.expect("set");
        let both = LimitsChange { inbound_moves_max: Some(0), ..second };
        assert_eq!(open().limits_set().expect("read"), both, "what is not named stays");
        let third = LimitsChange { lanes_max: Some(8), ..LimitsChange::default() };
        open().set_limits(third, true).await.expect("reset, and set");
        assert_eq!(open().limits_set().expect("read"), third);
        open().set_limits(LimitsChange::default(), true).await.expect("reset");
        assert_eq!(open().limits_set().expect("read"), LimitsChange::default());
    }

    #[tokio::test]
    async fn other_facts_stay_where_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = Journal::open(&folder.path().join("journal.redb")).expect("opened");
        journal.raise_epoch(sterna_shared::id::Epoch(7)).await.expect("raised");
        journal.set_limits(LimitsChange::default(), true).await.expect("reset");
        assert_eq!(journal.epoch().expect("read"), sterna_shared::id::Epoch(7));
        let set = LimitsChange { enabled: Some(false), ..LimitsChange::default() };
        journal.set_limits(set, false).await.expect("set");
        let dump = journal.dump().expect("dumped");
        assert_eq!(dump["limits_set"]["enabled"], false);
    }
}
