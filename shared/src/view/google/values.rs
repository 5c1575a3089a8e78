//! What Google's enumerations have: every value with its name, which is what JSON has, and its number, which is the proto's.
//! Each list is whole, also where Sterna never says a value.

macro_rules! named {
    ($(#[$doc:meta])* $name:ident is $proto:literal {
        $($(#[$variant_doc:meta])* $variant:ident = $number:literal, $text:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[repr(i32)]
        pub enum $name {
            $(
                $(#[$variant_doc])*
                #[serde(rename = $text)]
                $variant = $number,
            )*
        }

        impl $name {
            /// What the proto calls the enumeration.
            pub const PROTO: &str = $proto;

            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The proto's number.
            #[must_use]
            pub const fn number(self) -> i32 {
                self as i32
            }

            /// The name that stands for it in JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl $crate::view::google::wellknown::Unset for $name {
            fn is_unset(&self) -> bool {
                self.number() == 0
            }
        }
    };
}

named!(
    /// The state of a clone job.
    CloneJobState is "CloneJob.State" {
        /// Cannot be told.
        Unspecified = 0, "STATE_UNSPECIFIED";
        /// It has not begun.
        Pending = 1, "PENDING";
        /// It is under way.
        Active = 2, "ACTIVE";
        /// It is over, because of a failure.
        Failed = 3, "FAILED";
        /// It is over, and did what it should.
        Succeeded = 4, "SUCCEEDED";
        /// It is over, because it was cancelled.
        Cancelled = 5, "CANCELLED";
        /// It was cancelled, and is being undone.
        Cancelling = 6, "CANCELLING";
        /// It is under way, and changes the guest's operating system.
        AdaptingOs = 7, "ADAPTING_OS";
    }
);

named!(
    /// The state of a cutover job.
    CutoverJobState is "CutoverJob.State" {
        /// Cannot be told.
        Unspecified = 0, "STATE_UNSPECIFIED";
        /// It has not begun.
        Pending = 1, "PENDING";
        /// It is over, because of a failure.
        Failed = 2, "FAILED";
        /// It is over, and did what it should.
        Succeeded = 3, "SUCCEEDED";
        /// It is over, because it was cancelled.
        Cancelled = 4, "CANCELLED";
        /// It was cancelled, and is being undone.
        Cancelling = 5, "CANCELLING";
        /// It is under way.
        Active = 6, "ACTIVE";
        /// It is under way, and changes the guest's operating system.
        AdaptingOs = 7, "ADAPTING_OS";
    }
);

named!(
    /// The state of a replication cycle.
    ReplicationCycleState is "ReplicationCycle.State" {
        /// Cannot be told.
        Unspecified = 0, "STATE_UNSPECIFIED";
        /// It is under way.
        Running = 1, "RUNNING";
        /// It is stopped, and can go on.
        Paused = 2, "PAUSED";
        /// It is over, and its snapshot is not there.
        Failed = 3, "FAILED";
        /// It is over, and its snapshot is there.
        Succeeded = 4, "SUCCEEDED";
    }
);

named!(
    /// What is made of the VMs of a group.
    MigrationTargetType is "Group.MigrationTargetType" {
        /// As of Compute Engine.
        Unspecified = 0, "MIGRATION_TARGET_TYPE_UNSPECIFIED";
        /// VMs.
        ComputeEngine = 1, "MIGRATION_TARGET_TYPE_GCE";
        /// Disks, and no VMs.
        Disks = 2, "MIGRATION_TARGET_TYPE_DISKS";
    }
);

named!(
    /// How the replication of a VM stands.
    MigratingVmState is "MigratingVm.State" {
        /// Was not looked at.
        Unspecified = 0, "STATE_UNSPECIFIED";
        /// The VM is being looked at.
        Pending = 1, "PENDING";
        /// It can begin.
        Ready = 2, "READY";
        /// The first cycle is under way.
        FirstSync = 3, "FIRST_SYNC";
        /// Cycles are made.
        Active = 4, "ACTIVE";
        /// The source is being stopped, and the last cycle made.
        CuttingOver = 7, "CUTTING_OVER";
        /// The VM is cut over.
        Cutover = 8, "CUTOVER";
        /// The last cycle of a cutover is under way.
        FinalSync = 9, "FINAL_SYNC";
        /// No cycles are made for now.
        Paused = 10, "PAUSED";
        /// It is about to be over.
        Finalizing = 11, "FINALIZING";
        /// It is over.
        Finalized = 12, "FINALIZED";
        /// It went wrong.
        Error = 13, "ERROR";
        /// It has lasted too long.
        Expired = 14, "EXPIRED";
        /// It has lasted too long, and is over.
        FinalizedExpired = 17, "FINALIZED_EXPIRED";
    }
);

named!(
    /// What an error is about.
    MigrationErrorCode is "MigrationError.ErrorCode" {
        /// Nothing.
        Unspecified = 0, "ERROR_CODE_UNSPECIFIED";
        /// Cannot be told.
        Unknown = 1, "UNKNOWN_ERROR";
        /// The state of the source.
        SourceValidation = 2, "SOURCE_VALIDATION_ERROR";
        /// A replication, at its source.
        SourceReplication = 3, "SOURCE_REPLICATION_ERROR";
        /// A replication, at its target.
        TargetReplication = 4, "TARGET_REPLICATION_ERROR";
        /// A change of a guest's operating system.
        OsAdaptation = 5, "OS_ADAPTATION_ERROR";
        /// A clone.
        Clone = 6, "CLONE_ERROR";
        /// A cutover.
        Cutover = 7, "CUTOVER_ERROR";
        /// A report of what a VM uses.
        UtilizationReport = 8, "UTILIZATION_REPORT_ERROR";
        /// A new version of the agent.
        ApplianceUpgrade = 9, "APPLIANCE_UPGRADE_ERROR";
        /// The import of an image.
        ImageImport = 10, "IMAGE_IMPORT_ERROR";
        /// The move of a disk.
        DiskMigration = 11, "DISK_MIGRATION_ERROR";
    }
);

named!(
    /// What a warning is about.
    MigrationWarningCode is "MigrationWarning.WarningCode" {
        /// None of these.
        Unspecified = 0, "WARNING_CODE_UNSPECIFIED";
        /// A change of a guest's operating system.
        Adaptation = 1, "ADAPTATION_WARNING";
    }
);

named!(
    /// What starts a guest.
    ComputeEngineBootOption is "ComputeEngineBootOption" {
        /// Cannot be told.
        Unspecified = 0, "COMPUTE_ENGINE_BOOT_OPTION_UNSPECIFIED";
        /// UEFI.
        Efi = 1, "COMPUTE_ENGINE_BOOT_OPTION_EFI";
        /// A BIOS.
        Bios = 2, "COMPUTE_ENGINE_BOOT_OPTION_BIOS";
    }
);

named!(
    /// What starts a guest, as the deprecated [`TargetVmDetails`](super::TargetVmDetails) have it.
    BootOption is "TargetVMDetails.BootOption" {
        /// Cannot be told.
        Unspecified = 0, "BOOT_OPTION_UNSPECIFIED";
        /// UEFI.
        Efi = 1, "EFI";
        /// A BIOS.
        Bios = 2, "BIOS";
    }
);
