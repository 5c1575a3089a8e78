//! `Group`: replications that belong together.
//!
//! Sterna keeps nothing of a group but its name, in the policy of each job that is in it. So there is no time at which it was made, and
//! nobody describes it. Google's groups are in a location: of one whose replicas are at several hosts there is one at each.

use super::name::GroupName;
use super::values::MigrationTargetType;
use super::wellknown::resource;

resource! {
    /// A group, as Google has it. What Sterna has nothing to say of is left out.
    Group {
        /// Its name.
        name: GroupName = "name",
        /// What people call it.
        display_name: String = "displayName",
        /// What is made of the VMs that are in it.
        migration_target_type: MigrationTargetType = "migrationTargetType",
    }
}

impl From<GroupName> for Group {
    fn from(name: GroupName) -> Self {
        Self { display_name: name.group.clone(), migration_target_type: MigrationTargetType::ComputeEngine, name }
    }
}
