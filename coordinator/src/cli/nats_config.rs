//! `sterna nats-config`: a broker that lets each of the fleet do its part and nothing else.
//!
//! ```text
//!   nkeys/host-alpha.nk        seed, 0600: to alpha's agent, and nowhere else
//!   nkeys/coordinator-main.nk  seed, 0600: to the coordinator
//!   nkeys/operator-admin.nk    seed, 0600: to a person
//!   nats-server.conf           the public keys, and what each may publish and hear
//! ```
//!
//! Run again with a further `--host`, it keeps the seeds there are and writes the configuration anew; a member whose
//! seed file was deleted is no longer let in. Answers are kept apart by inboxes: a host hears `_INBOX_<host>.>`, an
//! operator `_INBOX.<its public nkey>.>`, so that nobody reads another's answers. A command crosses an inbox with its
//! token in it, which is why these must not be shared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::Args;
use nkeys::KeyPair;
use serde_json::json;
use sterna_shared::bus::{STREAM_COMMANDS, Subject};
use sterna_shared::id::HostId;

use super::error::{CliError, Exit};
use super::output::{Output, table};
use crate::client::inbox_of;
use crate::pki::{Role, write_file, write_secret};

/// The first line of a file that may be written anew.
const GENERATED: &str = "# Written by sterna nats-config; changed by running it again, not by hand.";
/// The longest seed file that is read.
const SEED_LENGTH_MAX: u64 = 256;
/// How long an agent may take to answer a request: the longest is a guest that is given time to stop.
const ANSWER_TIME: &str = "65m";

#[derive(Debug, Args)]
pub(super) struct NatsConfigArgs {
    /// The directory to write to
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
    /// A host of the fleet; may be repeated, or several with commas between
    #[arg(long = "host", value_name = "HOST", value_delimiter = ',')]
    hosts: Vec<HostId>,
    /// A coordinator's name; may be repeated [default: main]
    #[arg(long = "coordinator", value_name = "NAME", value_delimiter = ',')]
    coordinators: Vec<HostId>,
    /// An operator's name; may be repeated [default: admin]
    #[arg(long = "operator", value_name = "NAME", value_delimiter = ',')]
    operators: Vec<HostId>,
    /// Where the broker listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:4222")]
    listen: SocketAddr,
    /// Where the broker keeps its streams
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/nats")]
    store: PathBuf,
    /// The broker's certificate
    #[arg(long, value_name = "FILE", default_value = "/etc/nats/server.pem")]
    certificate: PathBuf,
    /// The broker's key
    #[arg(long, value_name = "FILE", default_value = "/etc/nats/server-key.pem")]
    key: PathBuf,
    /// No TLS: for a broker that listens on this machine only
    #[arg(long)]
    no_tls: bool,
    /// Replace a nats-server.conf that was not written by this command
    #[arg(long)]
    force: bool,
}

/// One that may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    role: Role,
    name: HostId,
    public_key: String,
    seed_file: PathBuf,
}

pub(super) fn run(args: &NatsConfigArgs, output: Output) -> Result<Exit, CliError> {
    if args.no_tls && !args.listen.ip().is_loopback() {
        return Err(CliError::new(Exit::Usage, format!("without TLS the broker may not listen on {}", args.listen))
            .hint("give --listen 127.0.0.1:4222, or leave --no-tls out"));
    }
    // Coordinators report events in the place of a host: see Subject::CoordinatorEvent.
    if let Some(host) = args.hosts.iter().find(|host| host.as_str().starts_with('_')) {
        return Err(CliError::new(Exit::Usage, format!("no host may be called {host}"))
            .hint("names that begin with _ are kept for the coordinators' own subjects"));
    }
    let keys = args.dir.join("nkeys");
    let written = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| {
            let mut flat = CliError::new(Exit::Failed, format!("{path} cannot be read or written"));
            flat.causes.push(error.to_string());
            flat
        }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys).map_err(written(&keys))?;
    let configuration = args.dir.join("nats-server.conf");
    let ours = match fs::read_to_string(&configuration) {
        Ok(text) => text.starts_with(GENERATED),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(written(&configuration)(error)),
    };
    if !ours && !args.force {
        return Err(CliError::new(
            Exit::Refused,
            format!("{} was not written by this command", configuration.display()),
        )
        .hint("give --force to replace it, or another --dir"));
    }

    let mut members = existing_members(&keys).map_err(written(&keys))?;
    let asked = wished(args, &members);
    for (role, name) in asked {
        if !members.contains_key(&(role.as_str(), name.clone())) {
            let member = new_member(&keys, role, &name)?;
            members.insert((role.as_str(), name), member);
        }
    }
    let members: Vec<Member> = members.into_values().collect();
    write_file(&configuration, &render(args, &members), 0o644, true).map_err(written(&configuration))?;
    show(&configuration, &members, output)?;
    output
        .remark("give each its seed file, mode 0600, and nobody another's; check: nats-server -t -c nats-server.conf");
    Ok(Exit::Ok)
}

fn wished(args: &NatsConfigArgs, members: &BTreeMap<(&'static str, HostId), Member>) -> Vec<(Role, HostId)> {
    let mut asked: Vec<(Role, HostId)> = args.hosts.iter().map(|name| (Role::Host, name.clone())).collect();
    for (role, names, default) in
        [(Role::Coordinator, &args.coordinators, "main"), (Role::Operator, &args.operators, "admin")]
    {
        asked.extend(names.iter().map(|name| (role, name.clone())));
        // A fleet has at least one of each; one that exists is enough.
        if names.is_empty() && !members.keys().any(|(kind, _)| *kind == role.as_str()) {
            asked.extend(default.parse().ok().map(|name| (role, name)));
        }
    }
    asked
}

/// The members whose seeds are there: the file's name says who, the seed gives the public key.
fn existing_members(keys: &Path) -> io::Result<BTreeMap<(&'static str, HostId), Member>> {
    let mut members = BTreeMap::new();
    for entry in fs::read_dir(keys)? {
        let path = entry?.path();
        let named = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".nk"));
        let Some((role, name)) = named.and_then(|stem| stem.split_once('-')) else { continue };
        let role = [Role::Host, Role::Coordinator, Role::Operator].into_iter().find(|known| known.as_str() == role);
        let (Some(role), Ok(name)) = (role, name.parse::<HostId>()) else { continue };
        let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        if fs::metadata(&path)?.len() > SEED_LENGTH_MAX {
            return Err(damaged("too long for a seed; restore or delete it".to_owned()));
        }
        let key = KeyPair::from_seed(fs::read_to_string(&path)?.trim())
            .map_err(|error| damaged(format!("no seed ({error}); restore or delete it")))?;
        let member = Member { role, name: name.clone(), public_key: key.public_key(), seed_file: path };
        members.insert((role.as_str(), name), member);
    }
    Ok(members)
}

fn new_member(keys: &Path, role: Role, name: &HostId) -> Result<Member, CliError> {
    let key = KeyPair::new_user();
    let seed = key.seed().map_err(|error| CliError::from_source(Exit::Failed, &error))?;
    let seed_file = keys.join(format!("{role}-{name}.nk"));
    write_secret(&seed_file, &format!("{seed}\n"), false).map_err(|error| {
        let mut flat = CliError::new(Exit::Failed, format!("{} cannot be written", seed_file.display()));
        flat.causes.push(error.to_string());
        flat
    })?;
    Ok(Member { role, name: name.clone(), public_key: key.public_key(), seed_file })
}

/// The whole configuration.
fn render(args: &NatsConfigArgs, members: &[Member]) -> String {
    let mut text = format!(
        "{GENERATED}\n\
         # Members are the seed files in nkeys/. nats-server 2.12.7 or later is advised.\n\n\
         server_name: sterna\n\
         listen: \"{}\"\n\
         # The largest message Sterna sends; bulk never crosses the broker.\n\
         max_payload: 1MB\n",
        args.listen
    );
    if !args.no_tls {
        let _ = write!(
            text,
            "\ntls {{\n    cert_file: {}\n    key_file: {}\n    min_version: \"1.3\"\n    timeout: 5\n}}\n",
            quoted(&args.certificate),
            quoted(&args.key)
        );
    }
    let _ = write!(
        text,
        "\njetstream {{\n    store_dir: {}\n\
         \x20   # Every write reaches the disk before it is acknowledged: messages are few.\n\
         \x20   sync_interval: always\n    max_memory_store: 256MB\n    max_file_store: 16GB\n}}\n\n\
         accounts {{\n    STERNA {{\n        jetstream: enabled\n        users: [\n",
        quoted(&args.store)
    );
    for member in members {
        text.push_str(&user(member));
    }
    text.push_str("        ]\n    }\n}\n");
    text
}

fn user(member: &Member) -> String {
    let Permissions { publish, subscribe, answers } = permissions(member);
    let list = |subjects: &[String]| {
        subjects.iter().fold(String::new(), |mut text, subject| {
            let _ = writeln!(text, "                        \"{subject}\"");
            text
        })
    };
    let answers = if answers {
        format!("                    allow_responses: {{ max: 1, expires: \"{ANSWER_TIME}\" }}\n")
    } else {
        String::new()
    };
    format!(
        "            # {} {}\n            {{\n                nkey: {}\n                permissions {{\n\
         \x20                   publish: {{ allow: [\n{}                    ] }}\n\
         \x20                   subscribe: {{ allow: [\n{}                    ] }}\n{answers}                }}\n            }}\n",
        member.role,
        member.name,
        member.public_key,
        list(&publish),
        list(&subscribe),
    )
}

struct Permissions {
    publish: Vec<String>,
    subscribe: Vec<String>,
    answers: bool,
}

/// What a member may say and hear: everything else is denied.
fn permissions(member: &Member) -> Permissions {
    let name = &member.name;
    let own = inbox_of(&member.public_key);
    match member.role {
        Role::Host => Permissions {
            publish: vec![
                format!("sterna.v1.evt.{name}.*"),
                format!("sterna.v1.progress.{name}.*"),
                Subject::Host(name.clone()).to_string(),
                // A handover that the lanes cannot carry goes from agent to agent.
                Subject::HANDOVERS.to_owned(),
                format!("_INBOX_{name}.>"),
                // The durable consumer is made by the coordinators; an agent looks at its own and takes from it.
                format!("$JS.API.CONSUMER.INFO.{STREAM_COMMANDS}.{name}"),
                format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM_COMMANDS}.{name}"),
                format!("$JS.ACK.{STREAM_COMMANDS}.{name}.>"),
            ],
            subscribe: vec![
                Subject::Agent(name.clone()).to_string(),
                Subject::Handover(name.clone()).to_string(),
                format!("_INBOX_{name}.>"),
            ],
            answers: true,
        },
        Role::Coordinator => Permissions {
            publish: ["sterna.>", "$JS.API.>", "$JS.ACK.>", "$JS.FC.>", "$KV.>", "$SRV.>", "_INBOX.>"]
                .map(str::to_owned)
                .to_vec(),
            subscribe: ["sterna.>", "$SRV.>", "$KV.>", "_INBOX.>"].map(str::to_owned).to_vec(),
            answers: true,
        },
        Role::Operator | Role::Server => Permissions {
            publish: vec![Subject::API.to_owned(), "$SRV.>".to_owned(), format!("{own}.>")],
            subscribe: vec![Subject::FEED.to_owned(), format!("{own}.>")],
            answers: false,
        },
    }
}

/// A path as nats-server's configuration quotes it.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""))
}

fn show(configuration: &Path, members: &[Member], output: Output) -> Result<(), CliError> {
    let users: Vec<_> = members
        .iter()
        .map(|member| {
            json!({
                "role": member.role.as_str(), "name": member.name,
                "public_key": member.public_key, "seed_file": member.seed_file,
            })
        })
        .collect();
    output.result(&json!({ "configuration": configuration, "users": users }), || {
        let rows = members.iter().map(|member| {
            let (role, name) = (member.role.to_string(), member.name.to_string());
            [role, name, member.public_key.clone(), member.seed_file.display().to_string()]
        });
        format!("{}\n\n{}", configuration.display(), table(["ROLE", "NAME", "NKEY", "SEED"], rows))
    })
}
