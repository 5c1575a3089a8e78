//! `sterna clone rehearse`: boot a clone where it reaches nothing, see whether it is healthy, and delete it.

use clap::Args;
use sterna_shared::id::{HostId, VmId, VmName};
use sterna_shared::job::{JobKind, MoveRequest};
use sterna_shared::rehearsal::{HealthProbe, PROBE_DEFAULT_SECONDS, Rehearsal};
use sterna_shared::replica::{CloneWish, NetworkWish, SeedWish};
use sterna_shared::vm::IsolatedAddress;

use super::clone::{MadeArgs, show_plan, unnamed};
use super::error::{CliError, Exit};
use super::migrate::SubmitArgs;
use super::output::Output;
use super::schedule::parse_seconds;
use crate::client::Client;
use crate::google::name_of;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sterna clone rehearse web --probe tcp:22 --probe http:80/health\n  \
    sterna clone rehearse web --probe tcp:5432 --address 192.0.2.10/24 --probe-timeout 5m\n  \
    sterna clone rehearse web --probe agent --start 03:00 --weekday sunday --times 0 --notify subject:rehearsals")]
pub(super) struct RehearseArgs {
    /// The replicated VM's name or id
    vm: String,
    /// What the guest has to answer: tcp:PORT, http:PORT/PATH (a status below 400), agent (the QEMU guest agent), console:TEXT, or command:NAME:PORT (a command of the host's operators)
    #[arg(long = "probe", value_name = "PROBE", required = true)]
    probes: Vec<HealthProbe>,
    /// How long it has from its start to answer all of them, such as 90s or 5m [default: 2m]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    probe_timeout: Option<u32>,
    /// The address that the guest has by itself, with its network; where it is left out it is given one by DHCP
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    address: Option<IsolatedAddress>,
    /// The name it has meanwhile [default: the VM's, and -rehearsal behind it]
    #[arg(long)]
    name: Option<VmName>,
    /// The host whose replica it is; where it is left out, that with the latest snapshot
    #[arg(long = "on", value_name = "HOST")]
    host: Option<HostId>,
    #[command(flatten)]
    made: MadeArgs,
    #[command(flatten)]
    submit: SubmitArgs,
}

pub(super) async fn run(args: &RehearseArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    let request = request(args)?;
    let mut policy = args.submit.policy.policy(client.sender());
    args.submit.policy.recover(&request, &mut policy)?;
    args.submit.submit(&request, &policy, show_plan, client, output).await
}

fn request(args: &RehearseArgs) -> Result<MoveRequest, CliError> {
    let wish = CloneWish {
        // Each run has an id of its own.
        id: VmId::from_uuid(uuid::Uuid::now_v7()),
        name: args.name.clone().map_or_else(|| name_of(&args.vm, "rehearsal").map_err(unnamed), Ok)?,
        snapshot: args.made.snapshot,
        pool: args.made.pool.clone(),
        vcpus: args.made.vcpus,
        memory: args.made.memory,
        firmware: None,
        secure_boot: None,
        network: NetworkWish::Isolated,
        full: false,
        start: true,
        skip_os_adaptation: args.made.skip_os_adaptation,
        hostname: None,
        seed: SeedWish::Auto,
        rehearsal: Some(Rehearsal {
            probes: args.probes.clone(),
            probe_seconds: args.probe_timeout.unwrap_or(PROBE_DEFAULT_SECONDS),
            address: args.address.unwrap_or_default(),
        }),
    };
    Ok(MoveRequest::making(JobKind::Rehearse, &args.vm, args.host.clone(), wish))
}

fn parse_time(text: &str) -> Result<u32, String> {
    parse_seconds(text).ok_or_else(|| format!("{text:?} is no time; give a number with s, m or h, such as 90s"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RehearseArgs,
    }

    fn line(arguments: &[&str]) -> Result<RehearseArgs, clap::Error> {
        Line::try_parse_from([&["rehearse"], arguments].concat()).map(|line| line.args)
    }

    #[test]
    fn a_rehearsal_is_asked_for() {
        let args =
            line(&["web", "--probe", "tcp:22", "--probe", "http:80", "--probe-timeout", "5m"]).expect("a command");
        let request = request(&args).expect("a request");
        assert_eq!((request.kind, request.vm.as_str()), (JobKind::Rehearse, "web"));
        let wish = request.clone.expect("a wish");
        assert_eq!((wish.name.as_str(), wish.start, &wish.network), ("web-rehearsal", true, &NetworkWish::Isolated));
        let rehearsal = wish.rehearsal.expect("a rehearsal");
        let probes: Vec<String> = rehearsal.probes.iter().map(ToString::to_string).collect();
        assert_eq!((probes.join(" ").as_str(), rehearsal.probe_seconds), ("tcp:22 http:80/", 300));
        assert_eq!(rehearsal.address, IsolatedAddress::default());
    }

    #[test]
    fn it_is_made_by_a_calendar_too() {
        let weekly = ["web", "--probe", "agent", "--start", "03:00", "--weekday", "sunday", "--times", "0"];
        let policy = line(&weekly).expect("a command").submit.policy.policy("somebody");
        assert!(policy.recurs() && policy.schedule.is_some_and(|schedule| schedule.rule.is_some()));
    }

    #[test]
    fn what_makes_no_rehearsal_is_refused() {
        for wrong in [
            &["web"][..],
            &["web", "--probe", "udp:53"],
            &["web", "--probe", "tcp:22", "--address", "10.0.0.1"],
            &["web", "--probe", "tcp:22", "--probe-timeout", "soon"],
        ] {
            assert!(line(wrong).is_err(), "{wrong:?}");
        }
    }
}
