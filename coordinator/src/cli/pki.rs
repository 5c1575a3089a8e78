//! `sterna pki`: the fleet's certificates. What they say is in [`crate::pki`].

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use sterna_shared::time::Timestamp;

use super::error::{CliError, Exit};
use super::output::{Output, pairs};
use crate::pki::{
    self, AUTHORITY_DAYS_DEFAULT, CERTIFICATE_DAYS_DEFAULT, DAYS_MAX, PkiError, Role, Validity, Wish, Written,
};

#[derive(Debug, Subcommand)]
pub(super) enum PkiCommand {
    /// Make the fleet's authority
    Init {
        /// The name in its certificate
        #[arg(long, default_value = "Sterna fleet")]
        name: String,
        /// Days it holds
        #[arg(long, default_value_t = AUTHORITY_DAYS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
        days: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Issue a certificate for a host, a coordinator, an operator, or the broker
    Issue {
        /// For whom
        #[arg(value_enum)]
        role: RoleArg,
        /// Host id, coordinator's or operator's name, or the broker's DNS name or address
        name: String,
        /// A further DNS name or IP address; may be repeated
        #[arg(long = "address", value_name = "NAME-OR-IP")]
        addresses: Vec<String>,
        /// Days it holds
        #[arg(long, default_value_t = CERTIFICATE_DAYS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
        days: u32,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
pub(super) struct Common {
    /// The directory of the authority; keep it off the hosts
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// From when it holds, RFC 3339, in place of now
    #[arg(long, value_name = "TIME", hide = true)]
    not_before: Option<Timestamp>,
    /// Until when it holds, RFC 3339, in place of --days
    #[arg(long, value_name = "TIME", hide = true)]
    not_after: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum RoleArg {
    /// An agent's host
    Host,
    /// A coordinator
    Coordinator,
    /// A person or program
    Operator,
    /// nats-server
    Server,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Host => Self::Host,
            RoleArg::Coordinator => Self::Coordinator,
            RoleArg::Operator => Self::Operator,
            RoleArg::Server => Self::Server,
        }
    }
}

impl From<PkiError> for CliError {
    fn from(error: PkiError) -> Self {
        let exit = match &error {
            PkiError::Name { .. }
            | PkiError::Address { .. }
            | PkiError::TooManyAddresses { .. }
            | PkiError::Validity { .. } => Exit::Usage,
            PkiError::Exists { .. } => Exit::Refused,
            PkiError::NoAuthority { .. } => Exit::NotFound,
            PkiError::File { .. } | PkiError::Crypto { .. } => Exit::Failed,
        };
        Self::from_source(exit, &error)
    }
}

pub(super) fn run(command: &PkiCommand, output: Output) -> Result<Exit, CliError> {
    match command {
        PkiCommand::Init { name, days, common } => {
            let written = pki::init(&common.dir, name, validity(*days, common), common.force)?;
            show(&written, output)?;
            output.remark(&format!(
                "keep {} off the hosts, and a copy of it in a safe; next: sterna pki issue host NAME --dir {}",
                written.key.display(),
                common.dir.display()
            ));
        }
        PkiCommand::Issue { role, name, addresses, days, common } => {
            let wish = Wish {
                role: (*role).into(),
                name: name.clone(),
                addresses: addresses.clone(),
                validity: validity(*days, common),
            };
            show(&pki::issue(&common.dir, &wish, common.force)?, output)?;
        }
    }
    Ok(Exit::Ok)
}

fn validity(days: u32, common: &Common) -> Validity {
    let usual = Validity::days(super::now(), days);
    Validity {
        not_before: common.not_before.unwrap_or(usual.not_before),
        not_after: common.not_after.unwrap_or(usual.not_after),
    }
}

fn show(written: &Written, output: Output) -> Result<(), CliError> {
    output.result(&json!({ "certificate": written.certificate, "key": written.key }), || {
        pairs([("certificate", written.certificate.display().to_string()), ("key", written.key.display().to_string())])
    })
}
