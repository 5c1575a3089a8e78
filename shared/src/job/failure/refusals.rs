//! The catalogue's rows of refusals. Nothing was begun when one of these is told.

use super::RefusalCode;
use super::catalogue::{ErrorEntry, catalogue};

catalogue!(RefusalCode {
    UnknownVm = "STERNA-R001", "unknown_vm",
        "No host reports that VM.",
        causes ["The name is misspelt.", "The host that has it is not heard of, or the VM was deleted."],
        remedies ["See `sterna vm list`, and `sterna host list` for hosts that are offline."];
    AmbiguousVm = "STERNA-R002", "ambiguous_vm",
        "Several VMs have that name.",
        causes ["VMs of one name were defined at several hosts."],
        remedies ["Give the VM's id: `sterna vm list --output json` has it."];
    UnknownHost = "STERNA-R003", "unknown_host",
        "No host of that name was ever heard of.",
        causes ["The name is misspelt.", "Its agent has never reached the broker."],
        remedies ["See `sterna host list`.", "Start the host's agent, and look at what it says: `sterna doctor`."];
    HostOffline = "STERNA-R004", "host_offline",
        "A host of the move has not been heard of lately.",
        causes ["Its agent does not run, or has no way to the broker.", "The host is down."],
        remedies ["Start `sterna-agent` there, or mend its way to NATS: `sterna doctor`."];
    SameHost = "STERNA-R005", "same_host",
        "The VM is on that host already.",
        causes ["The host named as target is the one that has the VM."],
        remedies ["Name another host, or move disks between its pools: `--storage-only --disk NAME=POOL`."];
    NoTarget = "STERNA-R006", "no_target",
        "No target was named, and the request implies none.",
        causes ["The request has neither a host to go to nor the wish to move disks only."],
        remedies ["Give `--to HOST`, or `--storage-only`."];
    VmInJob = "STERNA-R007", "vm_in_job",
        "Another job holds the VM.",
        causes ["A move of it is under way, or waits for its handover to be resolved."],
        remedies ["Wait for it (`sterna job watch JOB`), or call it off (`sterna job cancel JOB`)."];
    VmState = "STERNA-R008", "vm_state",
        "The VM is in a state in which it cannot move that way.",
        causes ["A live move needs a guest that runs, and a cold one a guest that is stopped."],
        remedies [
            "Leave out `--mode`, so that it fits the VM.",
            "Or start or stop the guest first: `sterna vm start {vm}`, `sterna vm stop {vm}`.",
        ];
    VmUnresolved = "STERNA-R009", "vm_unresolved",
        "No host owns the VM, since its last handover is not resolved.",
        causes ["The hosts of an earlier move lost each other in its handover."],
        remedies [
            "Bring both hosts of that handover up: they settle it by themselves.",
            "Only if one is gone for good, without power and cut from storage: `sterna vm resolve {vm} --fenced HOST`.",
        ];
    Memory = "STERNA-R010", "memory",
        "The target has not enough free memory for the guest.",
        causes ["Other guests, or other programs, use it."],
        remedies ["Move or stop a guest there (`sterna host show HOST`), or choose another target."];
    PoolSpace = "STERNA-R011", "pool_space",
        "A pool has not enough room for the disks.",
        causes ["It is filled by other images, or is smaller than the disks may grow."],
        remedies [
            "Make room there: `sterna host show HOST` lists the pools.",
            "Or give the disks another pool: `--disk NAME=POOL`.",
        ];
    UnknownPool = "STERNA-R012", "unknown_pool",
        "The target has no pool of that name.",
        causes ["Disks go to the pool of the same name unless another is given, and the target's pools are named otherwise."],
        remedies [
            "Give a pool that the target has: `--disk NAME=POOL`.",
            "Or add `[pools.NAME]` to its agent.toml.",
        ];
    PoolKind = "STERNA-R013", "pool_kind",
        "A pool cannot hold what is to go there.",
        causes ["A volume group holds raw disks only, and no files."],
        remedies ["Have the disk made raw, `--disk NAME=POOL:raw`, or give it a pool that is a directory."];
    UnknownDisk = "STERNA-R014", "unknown_disk",
        "The VM has no disk of that name.",
        causes ["The name given with `--disk` is misspelt."],
        remedies ["See the VM's disks: `sterna vm show {vm}`."];
    PoolNotShared = "STERNA-R015", "pool_not_shared",
        "No disk is to be copied, and a pool is not the same storage at both hosts.",
        causes ["`--storage none` was given for a disk in a pool of one host's own.", "Or `shared` in the pools' settings differs."],
        remedies [
            "Copy the disks: leave out `--storage none`.",
            "If both pools are the same storage, give them one `shared` name in both agent.toml.",
        ];
    NothingToMove = "STERNA-R016", "nothing_to_move",
        "Every disk is where it is asked to go.",
        causes ["A storage move was asked for without another pool or format for any disk."],
        remedies ["Give `--disk NAME=POOL[:FORMAT]` with another pool or format."];
    UnknownBridge = "STERNA-R017", "unknown_bridge",
        "The target has no bridge that a NIC of the VM needs.",
        causes ["The bridge is not there, or is not listed in the target's settings."],
        remedies ["Make it there and list it under `bridges` in agent.toml, or choose another target."];
    MachineType = "STERNA-R018", "machine_type",
        "The target's QEMU has not the VM's machine type.",
        causes ["Its QEMU is older than the one that the VM was defined for, or was built without that type."],
        remedies ["Upgrade QEMU there, or define the VM with a machine type that both hosts have."];
    CpuModel = "STERNA-R019", "cpu_model",
        "The target cannot give the guest the processor that it has now.",
        causes ["The target's processor is older or of another kind.", "The guest sees the whole processor of its host."],
        remedies [
            "Define the VM with a named CPU model that both hosts have.",
            "Or choose another target, or move it stopped: `--mode cold`.",
        ];
    Firmware = "STERNA-R020", "firmware",
        "The target has no UEFI firmware, or none with secure boot, which the VM has on.",
        causes ["OVMF is not installed there, or a build of it without secure boot and its keys."],
        remedies ["Install it (package `ovmf`) and restart the agent, or choose another target."];
    BootFile = "STERNA-R021", "boot_file",
        "The target lacks a kernel or an initial RAM disk that the VM boots from.",
        causes ["The file was put into the boot directory of one host only."],
        remedies ["Copy it into the target's boot directory, under the same name."];
    NameTaken = "STERNA-R022", "name_taken",
        "The target has a VM of that name or id.",
        causes ["Another VM was given the name.", "Or the target kept this one from an earlier move that was not settled."],
        remedies [
            "See which it is: `sterna vm list`.",
            "Delete or resolve the one that is not wanted, or choose another target.",
        ];
    CertificateExpired = "STERNA-R023", "certificate_expired",
        "A host's certificate has expired or is not yet valid.",
        causes ["It was not renewed in time.", "A host's clock is wrong."],
        remedies ["Set the clocks right, or issue a new one: `sterna pki issue host HOST --address ADDRESS --dir DIRECTORY --force`."];
    CertificateAuthority = "STERNA-R024", "certificate_authority",
        "The two hosts trust different authorities.",
        causes ["Their certificates were issued by two fleets, or the authority was made anew in between."],
        remedies ["Issue both by one authority: `sterna pki issue host HOST --address ADDRESS --dir DIRECTORY --force`."];
    HostBusy = "STERNA-R025", "host_busy",
        "A host takes no further move at present.",
        causes ["It has as many moves in hand as its limits allow."],
        remedies [
            "Wait for one to end: `sterna job list`.",
            "Or raise the limit: `sterna host set HOST --outbound N`, `--inbound N` or `--storage N`.",
        ];
    InvalidValue = "STERNA-R026", "invalid_value",
        "A value of the request is out of its range, or does not go with another.",
        causes ["The message names the value and what it may be."],
        remedies ["Give a value in that range, or leave it out: `sterna migrate --help`."];
    Accelerator = "STERNA-R027", "accelerator",
        "The two hosts do not run guests by the same accelerator.",
        causes ["One of them has no KVM: it is off in the firmware, or the host is a VM itself."],
        remedies ["Choose a target with the same accelerator, or move it stopped: `--mode cold`."];
    MigrationDisabled = "STERNA-R028", "migration_disabled",
        "A host's settings let no such move through.",
        causes [
            "Migration was switched off there, for maintenance perhaps.",
            "Or its limit of moves out, moves in or storage moves is 0.",
        ],
        remedies [
            "See what is set: `sterna host show HOST`.",
            "Allow it: `sterna host set HOST --migration on`, or a limit above 0.",
            "Or choose another target.",
        ];
    PortUnreachable = "STERNA-R031", "port_unreachable",
        "The source does not reach the target's data-plane port at an address that the target advertises.",
        causes ["A firewall between the hosts, or on the target, closes the port.", "The target advertises an address that leads elsewhere."],
        remedies [
            "Let the port pass between the hosts (4900/tcp unless agent.toml says otherwise).",
            "Or correct `advertise` in the target's agent.toml.",
        ];
    PeerCertificate = "STERNA-R032", "peer_certificate",
        "One of the two hosts does not accept the other's certificate.",
        causes ["The certificates are of different authorities, or one has expired.", "Another host answers at that address."],
        remedies ["Issue both by one authority: `sterna pki issue host HOST --address ADDRESS --dir DIRECTORY --force`.", "See what the target advertises: `sterna host show HOST`."];
    ClockSkew = "STERNA-R033", "clock_skew",
        "A host's clock differs from the coordinator's.",
        causes ["The clock is not kept by NTP."],
        remedies ["Set the clocks right, and keep them so: `systemctl status systemd-timesyncd` on the host."];
    NotConverging = "STERNA-R034", "not_converging",
        "The guest dirties its memory faster than the path carries it, so that a live move may not get there.",
        causes ["The guest is busy.", "The path is slow, or other moves share it, or the job's rate is limited."],
        remedies [
            "Move it at a quieter time, or with a longer `--max-blackout`.",
            "Or stop it and move it cold: `--mode cold`.",
        ];
    CertificateExpiring = "STERNA-R035", "certificate_expiring",
        "A host's certificate expires within two weeks.",
        causes ["It was not renewed yet."],
        remedies ["Issue a new one: `sterna pki issue host HOST --address ADDRESS --dir DIRECTORY --force`."];
    OlderHypervisor = "STERNA-R036", "older_hypervisor",
        "The target's QEMU is older than the source's.",
        causes ["The hosts are not upgraded together."],
        remedies ["Upgrade QEMU on the target."];
    FewProcessors = "STERNA-R037", "few_processors",
        "The guest has more vcpus than the target has processors.",
        causes ["The target is a smaller host."],
        remedies ["Choose a larger target, or define the VM with fewer vcpus."];
    NotMeasured = "STERNA-R038", "not_measured",
        "A check could not look at something.",
        causes ["An agent does not answer, or is of an older version."],
        remedies ["See that the agents are of the coordinator's version: `sterna host list`, `sterna doctor`."];
    DiskUnreadable = "STERNA-R039", "disk_unreadable",
        "A part of a disk of the VM cannot be read.",
        causes ["The medium under the pool fails.", "The image was cut short, or what it says of itself is damaged."],
        remedies [
            "Save what the guest holds before anything else.",
            "Look for errors of the medium: `journalctl -k` on the VM's host.",
        ];
    NoAdapter = "STERNA-R040", "no_adapter",
        "The host has no helper guest that could adapt the system on a clone's disks.",
        causes ["The section `[adapter]` of its agent.toml is missing, or a file that it names is."],
        remedies [
            "Install the helper guest there: see the install page, under clones.",
            "Or leave the system as it is: `--skip-os-adaptation`.",
        ];
    PlannedUnknown = "STERNA-R041", "planned_unknown",
        "No host has a planned VM of that id.",
        causes ["A move has used it, its time is up, or somebody has dropped it.", "The host that holds it is not heard of."],
        remedies [
            "See `sterna plan list`.",
            "Leave out `--planned`: a move needs none. Or make another: `sterna plan {vm} --to HOST`.",
        ];
    PlannedMismatch = "STERNA-R042", "planned_mismatch",
        "That planned VM is of another VM, or at another host than the move goes to.",
        causes ["Ids were mixed up."],
        remedies ["See `sterna plan list`, and give the id that stands there beside the VM and the host."];
    PlannedExpired = "STERNA-R043", "planned_expired",
        "The time of that planned VM is up: what it held is no longer held.",
        causes ["It was made for a shorter time than it took to come to the move."],
        remedies [
            "Leave out `--planned`: the move takes what room there is.",
            "Or make another, for longer: `sterna plan {vm} --to HOST --hold 7d`.",
        ];
    PlannedChanged = "STERNA-R044", "planned_changed",
        "The VM is no longer what it was when that planned VM was made.",
        causes ["It was deleted and defined again, with other memory, disks or networks."],
        remedies [
            "Make it anew; the new one takes its place: `sterna plan {vm} --to HOST`.",
            "Or leave out `--planned`.",
        ];
    ReplicaUnknown = "STERNA-R045", "replica_unknown",
        "No host has a replica of that VM.",
        causes ["The VM is not replicated, or the replica was removed.", "The host that has it is not heard of."],
        remedies ["See `sterna replicate list`.", "Have the VM replicated: `sterna replicate add {vm} --to HOST`."];
    ReplicaMismatch = "STERNA-R046", "replica_mismatch",
        "The replica at the target has other disks than the VM has now, or has them in other pools.",
        causes ["The VM was deleted and defined again.", "A disk was asked for in another pool than the replica has it in."],
        remedies [
            "Remove the replica and make it anew: `sterna replicate remove {vm}`, then `sterna replicate add {vm} --to HOST`.",
        ];
    SnapshotUnknown = "STERNA-R047", "snapshot_unknown",
        "The replica does not have that snapshot, or has none yet.",
        causes ["No cycle of the replication is over yet.", "The snapshot is no longer kept, or the number is mistyped."],
        remedies ["See `sterna replicate show {vm}`, and leave out `--snapshot` for the latest."];
    SnapshotDamaged = "STERNA-R048", "snapshot_damaged",
        "That snapshot of the replica does not hold what was written to it.",
        causes ["The medium under the replica's pool has altered or lost some of it, which `sterna replicate verify` has found."],
        remedies [
            "Wait for the next cycle, whose snapshot is right, or have one made: `sterna replicate resume {vm}`.",
            "Or give an older snapshot that is not damaged, with `--snapshot`: `sterna replicate show {vm}`.",
            "Look for errors of the medium: `journalctl -k` on the host that has the replica.",
        ];
    NotCutOver = "STERNA-R052", "not_cut_over",
        "The VM is not at the host that has its replica, and its replication cannot be finalized.",
        causes ["It was never cut over, the cutover is not over yet, or it was reverted."],
        remedies [
            "Cut it over first: `sterna cutover start {vm}`.",
            "To end the replication where it is, with its replica: `sterna replicate remove {vm}`.",
        ];
    ReplicationFinalized = "STERNA-R053", "replication_finalized",
        "The replication of the VM was finalized: there is no way back of its cutover any more.",
        causes ["Somebody has given `sterna replicate finalize`."],
        remedies ["Move the VM back as any other, which sends all of it: `sterna migrate {vm} --to HOST`."];
    NotExtendable = "STERNA-R054", "not_extendable",
        "The replication of the VM does not expire, or was extended as often as it may be.",
        causes ["It was asked for without `--expires`.", "It has gone on for far longer than was meant."],
        remedies [
            "Begin it anew: `sterna job cancel JOB`, then `sterna replicate add {vm} --to HOST`. It goes on from the replica that is there.",
        ];
    ReplicaLimit = "STERNA-R055", "replica_limit",
        "The target has as many replicas, or layers of them, as one host may have.",
        causes ["Many VMs are replicated to one host.", "Many snapshots are kept, or clones stand on old ones and keep their layers."],
        remedies [
            "Keep fewer snapshots: `sterna replicate add` with a lower `--keep`; or delete clones of old ones.",
            "Remove replicas that nobody needs: `sterna replicate list`, `sterna replicate remove VM`.",
            "Or replicate to another host.",
        ];
    ReplicationExpired = "STERNA-R056", "replication_expired",
        "The replication of the VM has expired: no cycle is made.",
        causes ["The time is up that was given with `--expires`."],
        remedies [
            "Push its expiry back: `sterna replicate extend {vm} --by 30d`.",
            "Or end it: `sterna replicate remove {vm}`.",
        ];
    ProbeImpossible = "STERNA-R060", "probe_impossible",
        "The VM lacks what a probe of a rehearsal would reach it by.",
        causes ["A port is asked for of a VM without a network interface, or the guest agent of one without a channel for it."],
        remedies ["Ask for something else, such as `--probe console:login:`, or give the VM what is missing and wait for a cycle."];
    SecureBootImpossible = "STERNA-R061", "secure_boot_impossible",
        "The clone is to have secure boot, and the VM lacks what that needs.",
        causes ["The VM has a BIOS, or a machine type without a system management mode for the firmware: a clone has both of the VM."],
        remedies [
            "Leave out `--secure-boot`.",
            "Or define the VM with `firmware = \"uefi\"` and a machine pc-q35-…, see that its system starts so, and wait for a cycle.",
        ];
    BootOptionImpossible = "STERNA-R062", "boot_option_impossible",
        "The clone is to boot by another firmware than the VM.",
        causes ["The `bootOption` that was given is not that of the VM: what is on its disks boots by one of the two."],
        remedies ["Leave `bootOption` out, or give that of the VM: `sterna replicate show VM --output google` tells it."];
});
