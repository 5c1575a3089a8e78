//! The catalogue's rows of failures, and of what else a job has to tell.
//!
//! The number of a failure is that of its `ErrorCode` in CIM, so that either leads to the other. 15 is the code of a handover
//! that is not resolved, which is no failure: there is no STERNA-F015.

use super::catalogue::{ErrorEntry, catalogue};
use super::{ConditionCode, FailureCode};

catalogue!(FailureCode {
    Cancelled = "STERNA-F001", "cancelled",
        "An operator cancelled the job before the handover, and the VM is as it was.",
        causes ["A person or a program gave `sterna job cancel`."],
        remedies [
            "Nothing is left to do.",
            "To move the VM after all, give the same `sterna migrate` again.",
        ];
    TargetRefused = "STERNA-F002", "target_refused",
        "The target would not take the VM, which stays with the source.",
        causes [
            "The guest did not come up at the target when it was to run there.",
            "The target knows of a later generation of the VM, or has promised not to run this one.",
            "It lacks something that the VM needs, or what is free there is held for planned VMs.",
        ],
        remedies [
            "Look at the target agent's log: `journalctl -u sterna-agent` on {target}.",
            "See whether it would be planned now: `sterna migrate {vm} --to {target} --dry-run`.",
            "Then give the same `sterna migrate` again.",
        ];
    LinkLost = "STERNA-F003", "link_lost",
        "The two agents could not talk for longer than the move allows.",
        causes [
            "The network between the hosts is cut, or loses too much of what is sent.",
            "One of the agents does not run, or its data-plane port is closed to the other.",
            "A certificate was not accepted.",
        ],
        remedies [
            "Have agents, addresses and certificates looked at: `sterna doctor`.",
            "Check the network between {source} and {target}, and that the data-plane port passes (4900/tcp).",
            "Then give the same `sterna migrate` again: what the target has received is not sent again.",
        ];
    PeerMisbehaved = "STERNA-F004", "peer_misbehaved",
        "An agent was told something by the other that the protocol does not allow there.",
        causes [
            "The two agents are of versions that do not fit.",
            "A program that is no agent of this fleet answers at that address, or Sterna has a fault.",
        ],
        remedies [
            "Compare the versions of the agents, `sterna host list`, and run one on {source} and {target}.",
            "If they are the same, report it with the logs of both: `journalctl -u sterna-agent`.",
        ];
    DiskRead = "STERNA-F005", "disk_read",
        "An image of the VM could not be read.",
        causes [
            "The medium under the pool fails, or the storage behind it is not reached.",
            "The image, or the program that serves it, is not there any more.",
        ],
        remedies [
            "Look for errors of the medium: `journalctl -k` on {host}.",
            "See that the pool is mounted and its image is there: `sterna host show {host}`, `sterna vm show {vm}`.",
            "Save what the guest holds before anything else if the medium fails; then give the same `sterna migrate` again.",
        ];
    DiskWrite = "STERNA-F006", "disk_write",
        "An image could not be made or written where the VM was to go.",
        causes [
            "The pool filled up while the disks were copied.",
            "The medium under the pool fails, or is mounted read only.",
            "Something lies where the image was to go.",
        ],
        remedies [
            "See what room the pools have: `sterna host show {target}`.",
            "Remove what an earlier move has left there and nothing needs: `sterna vm drop {vm} --host {target}`.",
            "Look for errors of the medium: `journalctl -k` on {target}.",
            "Or give the disk another pool: `--disk NAME=POOL`.",
        ];
    DigestMismatch = "STERNA-F007", "digest_mismatch",
        "The copies of a disk at the two hosts are not proven equal, so that the VM stays with the source; or a replica \
         does not hold what was written to it.",
        causes [
            "A medium, a controller or the memory of one of the hosts alters what passes through it.",
            "Something else than the VM wrote into one of the two images.",
        ],
        remedies [
            "Check medium and memory of {target} before anything is moved there: `journalctl -k`, `smartctl -a`.",
            "See that nothing but Sterna uses the pool's directory or volume group.",
            "Move to another host meanwhile. A replica is repaired by its next cycle: `sterna replicate show {vm}`.",
        ];
    Hypervisor = "STERNA-F008", "hypervisor",
        "QEMU would not start, ended, or refused a command.",
        causes [
            "QEMU was killed, by a lack of memory for one, or ended by a fault of its own.",
            "It lacks something that the VM needs, such as a file, a device or a right.",
        ],
        remedies [
            "Look at QEMU's own log, `qemu.log` in the VM's runtime directory, and at `journalctl -k`, on {host}.",
            "See where the VM is and whether it runs: `sterna vm show {vm}`.",
        ];
    MemoryCopy = "STERNA-F009", "memory_copy",
        "QEMU's migration of the memory ended before its time.",
        causes [
            "QEMU at one of the hosts ended, or did not know a device as the other wrote it.",
            "What carries the memory between the two was lost.",
        ],
        remedies [
            "Look at `qemu.log` in the VM's runtime directory on {source}, and at the agent's log on {target}.",
            "See that both hosts have a fitting QEMU: `sterna host list`.",
            "Then give the same `sterna migrate` again, or move it stopped: `--mode cold`.",
        ];
    BlackoutExceeded = "STERNA-F010", "blackout_exceeded",
        "The guest would have stood still for longer than the move allows.",
        causes [
            "The guest writes faster than the link carries.",
            "The link is slower than it was, or the move is held to too low a rate.",
        ],
        remedies [
            "Allow more: `--max-blackout MILLISECONDS`.",
            "Allow a higher rate, or none: `--bandwidth RATE`.",
            "Move at a quieter time, or stopped: `--mode cold`.",
        ];
    AgentRestarted = "STERNA-F011", "agent_restarted",
        "An agent was restarted in a step that cannot be taken up again, and the VM is unharmed.",
        causes ["The agent was upgraded, stopped, or ended by a fault, or its host was restarted."],
        remedies [
            "Give the same `sterna migrate` again: what the target has received is not sent again.",
            "If nobody restarted it, see why it ended: `journalctl -u sterna-agent` on {source} and {target}.",
        ];
    Journal = "STERNA-F012", "journal",
        "An agent could not write its journal, and so does nothing that it would have to remember.",
        causes ["The disk that holds the agent's state directory is full, read only, or fails."],
        remedies [
            "Make room, or mend the disk: `df /var/lib/sterna` and `journalctl -k` on {host}.",
            "Then give the same `sterna migrate` again.",
        ];
    PlanStale = "STERNA-F013", "plan_stale",
        "The VM is not, or no longer, what the plan says, or no agent took the plan on.",
        causes [
            "The VM was changed, started, stopped or moved after the plan was made.",
            "The agents did not run, or were not reached by the broker, when the plan was to be carried out.",
        ],
        remedies [
            "Look at the VM: `sterna vm show {vm}`.",
            "See that both agents are there: `sterna doctor`.",
            "Then plan it again: `sterna migrate` with `--dry-run`, and without.",
        ];
    Internal = "STERNA-F014", "internal",
        "Sterna itself has a fault.",
        causes ["Something happened that its authors held to be impossible."],
        remedies [
            "Report it with `sterna job show {job} --output json` and `journalctl -u sterna-agent` of both hosts.",
            "See that the VM is as it should be: `sterna vm show {vm}`.",
        ];
    PoolFull = "STERNA-F016", "pool_full",
        "A pool of the target has no room left for the VM's disks; the VM runs on at the source.",
        causes [
            "Something else has taken the room since the move was planned, or it is held for a planned VM.",
            "The guest has written much since then, and its image at the target grows with it.",
        ],
        remedies [
            "Make room in the pool, and say so: `sterna job answer {job} retry`.",
            "Or give a disk another pool: `sterna job answer {job} place DISK=POOL`.",
            "Or give the move up: `sterna job cancel {job}`.",
        ];
    Suspended = "STERNA-F017", "suspended",
        "An operator suspended the job, and the VM runs on at the source.",
        causes ["A person or a program gave `sterna job suspend`."],
        remedies ["Let it go on: `sterna job resume {job}`."];
    NotMigratable = "STERNA-F018", "not_migratable",
        "A check has found that the VM cannot be moved as was asked; nothing was changed.",
        causes ["Each finding of the check is an error of its own, told after this one."],
        remedies [
            "Follow the remedies of the findings: `sterna job show {job}` lists them.",
            "Then have it checked again: `sterna check {vm} --to {target}`.",
        ];
    OsAdaptation = "STERNA-F019", "os_adaptation",
        "The system on the clone's disks could not be given an identity of its own; what was made of the clone is gone.",
        causes [
            "A file system in the snapshot is damaged, or its guest had it half written.",
            "The helper guest did not start, or took too long: the host is overloaded, or its files are of another kernel.",
            "A hook of the host's operators failed, or is none that may be run; the failure names it.",
        ],
        remedies [
            "See what was done before: `sterna job show {job}`.",
            "Look at the agent's log at {host}: `journalctl -u sterna-agent`.",
            "Make it of another snapshot, with `--snapshot`.",
            "Or leave the system as it is, with `--skip-os-adaptation`, and see to its host name, keys and ids yourself.",
        ];
    GuestNotShutDown = "STERNA-F020", "guest_not_shut_down",
        "The guest did not shut down when its power button was pressed for a cutover; it runs on at the source.",
        causes [
            "The guest does not listen to its power button, or asks its user first.",
            "It takes longer to shut down than it is given.",
        ],
        remedies [
            "Cut it over live, without shutting it down: `sterna cutover start {vm}`.",
            "Or stop it as a power cut would: `sterna cutover start {vm} --cold --force`.",
        ];
    PoolNearlyFull = "STERNA-F021", "pool_nearly_full",
        "A replication cycle was not begun, or was given up, so that it does not fill a pool that guests write to; the VM \
         runs on, and the replica is as it was.",
        causes [
            "Little is free in a pool of the VM's own disks, where what the guest overwrites is put aside while a cycle reads.",
            "Or in a pool of the replica, where each snapshot has a layer of its own.",
        ],
        remedies [
            "See what room the pools have: `sterna host show {host}`. The next cycle begins by itself once there is enough.",
            "Make room: keep fewer snapshots (`--keep`), delete clones that stand on old ones, move a VM elsewhere.",
            "Or leave less free for guests: `headroom` of the pool in agent.toml of {host}.",
        ];
    Unhealthy = "STERNA-F024", "unhealthy",
        "A guest that was booted from a replica to see whether it would did not answer its probes; it is deleted, and the \
         replica is as it was.",
        causes [
            "The system on the disks does not start, or not the service that was asked for.",
            "It takes longer than it was given.",
            "It has another address than the network that it was given expects, or needs something outside of that.",
        ],
        remedies [
            "See what each probe got, and the guest's last words: `sterna job show {job}`.",
            "Look at it yourself: `sterna clone create` with `--start`, then `sterna vm console` of the clone.",
            "Give it longer with `--probe-timeout`, or its own address with `--address`, and rehearse again.",
        ];
});

catalogue!(ConditionCode {
    Killed = "STERNA-J001", "killed",
        "The job was ended at once, so that something may be left to clean.",
        causes ["A person or a program ended the job without waiting for it to put everything back."],
        remedies [
            "See where the VM is and whether it runs: `sterna vm show {vm}`.",
            "See what is left at the target: `sterna host show {target}`.",
            "Remove it, unless the VM is to move there again: `sterna vm drop {vm} --host {target}`.",
        ];
    Unresolved = "STERNA-J002", "unresolved",
        "The handover is not resolved: the guest stands still, and no host runs it until it is known whose it is.",
        causes [
            "The hosts lost each other between the offer of the VM and the answer.",
            "The target, or its agent, failed at that moment.",
        ],
        remedies [
            "Bring both hosts and the network between them back: the agents then settle it by themselves.",
            "Only if a host is gone for good, without power and cut from storage: `sterna vm resolve {vm} --fenced HOST`.",
        ];
    HostSilent = "STERNA-J003", "host_silent",
        "A host of the job is not heard of: the move goes on without, but nobody here knows how far it is.",
        causes [
            "The agent of that host does not run, or has no way to the broker.",
            "The host itself is down.",
        ],
        remedies [
            "Find out which of the two it is: `sterna doctor`, then `systemctl status sterna-agent` on {host}.",
            "Then look at the job again: `sterna job show {job}`.",
        ];
    InService = "STERNA-J004", "in_service",
        "The job is held for somebody who is at work on it.",
        causes ["A person or a program put the job into service."],
        remedies ["Wait until it is given back: `sterna job watch {job}`."];
    Cause = "STERNA-J005", "cause",
        "This led to the error that was told before it.",
        causes ["It is told in the words of the program or the system that met it."],
        remedies ["Follow the remedies of the error before it."];
});
