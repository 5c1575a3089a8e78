//! A broker that is too old is refused by its name, by its version and with what to do, before anything is asked of it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use sterna_coordinator::bus::Bus;

use super::*;

/// What Debian 12 has.
const OLD: &str = "2.9.10";

/// A server that greets as an old nats-server does and answers pings; its address. It ends with the process.
fn old_broker() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || greet(&connection, address.port()));
        }
    });
    format!("nats://{address}")
}

fn greet(mut connection: &TcpStream, port: u16) -> std::io::Result<()> {
    let info = serde_json::json!({
        "server_id": "OLD", "server_name": "old", "version": OLD, "go": "go1.19", "host": "127.0.0.1", "port": port,
        "headers": true, "max_payload": 1 << 20, "proto": 1, "client_id": 1, "jetstream": true,
    });
    write!(connection, "INFO {info}\r\n")?;
    for line in BufReader::new(connection).lines() {
        if line? == "PING" {
            write!(connection, "PONG\r\n")?;
        }
    }
    Ok(())
}

fn expect_refusal(told: &str) {
    for says in ["nats-server", OLD, "2.10.0", "upgrade it"] {
        assert!(told.contains(says), "{says} is not told: {told}");
    }
}

#[test]
fn the_command_refuses_a_broker_that_is_too_old() {
    let url = old_broker();
    let ended = sterna(&["--server", &url, "host", "list"]);
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended.stderr));
    expect_refusal(&text(&ended.stderr));
    let doctor = sterna(&["--server", &url, "doctor"]);
    assert_eq!(doctor.status.code(), Some(1), "{}", text(&doctor.stderr));
    let told = text(&doctor.stdout);
    assert!(told.contains("FAIL  broker"), "{told}");
    expect_refusal(&told);
}

#[test]
fn the_coordinator_refuses_a_broker_that_is_too_old() {
    let settings = NatsSettings { servers: vec![old_broker()], ca_file: None, nkey_file: None, credentials_file: None };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let refused = runtime.block_on(Bus::connect(&settings, "a test")).expect_err("it is too old");
    expect_refusal(&refused.to_string());
}
