//! The methods of Google's that the coordinators answer. Each has a subject, `sterna.v1.api.COLLECTION.METHOD`, and takes there the
//! request that the method has, in JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident = $text:literal: $collection:literal, $verb:literal;)*) => {
        /// A method of Google's Migrate to VMs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum Method {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl Method {
            /// All that there are.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The collection and the verb of its name, which are those of its subject.
            #[must_use]
            pub const fn tokens(self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$name => ($collection, $verb),)*
                }
            }
        }

        impl fmt::Display for Method {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)*
                })
            }
        }
    };
}

methods! {
    /// One replicated VM.
    MigratingVmsGet = "migratingVms.get": "migratingVms", "get";
    /// Those of a source.
    MigratingVmsList = "migratingVms.list": "migratingVms", "list";
    /// Change when cycles are made, and labels.
    MigratingVmsPatch = "migratingVms.patch": "migratingVms", "patch";
    /// Make no cycles for a time.
    MigratingVmsPause = "migratingVms.pauseMigration": "migratingVms", "pauseMigration";
    /// Make cycles again.
    MigratingVmsResume = "migratingVms.resumeMigration": "migratingVms", "resumeMigration";
    /// Push back when it expires.
    MigratingVmsExtend = "migratingVms.extendMigration": "migratingVms", "extendMigration";
    /// End it for good, once it is cut over.
    MigratingVmsFinalize = "migratingVms.finalizeMigration": "migratingVms", "finalizeMigration";
    /// One cycle.
    ReplicationCyclesGet = "replicationCycles.get": "replicationCycles", "get";
    /// Those of a replicated VM.
    ReplicationCyclesList = "replicationCycles.list": "replicationCycles", "list";
    /// Have a clone made.
    CloneJobsCreate = "cloneJobs.create": "cloneJobs", "create";
    /// Cancel a clone job.
    CloneJobsCancel = "cloneJobs.cancel": "cloneJobs", "cancel";
    /// One clone job.
    CloneJobsGet = "cloneJobs.get": "cloneJobs", "get";
    /// Those of a replicated VM.
    CloneJobsList = "cloneJobs.list": "cloneJobs", "list";
    /// Move a VM over to the host of its replica.
    CutoverJobsCreate = "cutoverJobs.create": "cutoverJobs", "create";
    /// Cancel a cutover job.
    CutoverJobsCancel = "cutoverJobs.cancel": "cutoverJobs", "cancel";
    /// One cutover job.
    CutoverJobsGet = "cutoverJobs.get": "cutoverJobs", "get";
    /// Those of a replicated VM.
    CutoverJobsList = "cutoverJobs.list": "cutoverJobs", "list";
    /// One group.
    GroupsGet = "groups.get": "groups", "get";
    /// Those of a location.
    GroupsList = "groups.list": "groups", "list";
    /// Put a replication into a group.
    GroupsAdd = "groups.addGroupMigration": "groups", "addGroupMigration";
    /// Take one out of it.
    GroupsRemove = "groups.removeGroupMigration": "groups", "removeGroupMigration";
    /// One operation.
    OperationsGet = "operations.get": "operations", "get";
    /// Those of a location.
    OperationsList = "operations.list": "operations", "list";
}

impl Method {
    /// The method of a subject; none where it is not one of these.
    #[must_use]
    pub fn of(tokens: (&str, &str)) -> Option<Self> {
        Self::ALL.iter().copied().find(|method| method.tokens() == tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_called_as_its_subject() {
        for method in Method::ALL {
            let (collection, verb) = method.tokens();
            assert_eq!(method.to_string(), format!("{collection}.{verb}"));
            assert_eq!(serde_json::to_value(method).expect("JSON"), method.to_string());
            assert_eq!(Method::of((collection, verb)), Some(*method));
        }
        assert_eq!(Method::of(("job", "list")), None);
    }
}
