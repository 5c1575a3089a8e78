//! The ground that scenarios stand on: hosts that are network namespaces, a real nats-server, real guests.
//!
//! ```text
//!   namespace      hosts and clients on one machine, joined by two bridges; links that are cut, restored, shaped
//!   process        a child with its output, killed when it is dropped
//!   nats           a nats-server that keeps its store over a restart
//!   control        the control plane as a coordinator speaks it
//!   operator       the operators' API as a program of one's own speaks it
//!   fleet          all of Sterna on that ground: broker, coordinator, agents, command line
//!   bench          Sterna against what is there without it
//!   debian         a guest that is a real Debian
//!   demo           a guest under load moves there and back
//!   dhcp           gives addresses to guests that ask for one
//!   efi            a disk with a program for UEFI firmware
//!   guest_image    where the witness' kernel and initramfs are
//!   moves          a guest whose moves are disturbed, followed to their end and looked over
//!   program        how the programs that people run end, and what they leave
//!   replicas       snapshots held against what the witness wrote
//!   faults         the matrix of faults and phases
//!   small_pool     a pool that can be filled
//!   scenario       a watched witness, and what must hold after each move
//!   schema         messages held against the schemas that are published
//!   witness        asking the witness, and writing down all it says
//! ```
//!
//! Everything a test makes goes away when it is dropped, and what a killed test left behind is swept by the next.

pub mod bench;
pub mod control;
pub mod debian;
pub mod demo;
pub mod dhcp;
pub mod efi;
pub mod faults;
pub mod fleet;
pub mod guest_image;
pub mod moves;
pub mod namespace;
pub mod nats;
pub mod operator;
pub mod process;
pub mod program;
pub mod replicas;
pub mod scenario;
pub mod schema;
pub mod small_pool;
pub mod witness;
