//! The three rtnetlink requests that bring one device up: an address, the link, a default route.
//!
//! Bytes as in `linux/netlink.h` and `linux/rtnetlink.h`; every request asks for its acknowledgement.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::config::Network;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
const NLM_F_CREATE_EXCL: u16 = 0x400 | 0x200;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const AF_INET: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
/// Where the error code lies in an acknowledgement: after the 16 bytes of the header.
const ERROR_AT: std::ops::Range<usize> = 16..20;

/// Brings device `index` up with the given address. An error names the step that failed.
pub(crate) fn configure(index: u32, network: &Network) -> Result<(), (&'static str, io::Error)> {
    // Without a protocol a netlink socket is one to rtnetlink, the protocol numbered 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .map_err(|error| ("open a netlink socket", error.into()))?;
    request(&socket, &new_address(index, network.address, network.prefix)).map_err(|e| ("set the address", e))?;
    request(&socket, &link_up(index)).map_err(|e| ("bring the link up", e))?;
    if let Some(gateway) = network.gateway {
        request(&socket, &default_route(index, gateway)).map_err(|e| ("set the default route", e))?;
    }
    Ok(())
}

fn new_address(index: u32, address: Ipv4Addr, prefix: u8) -> Vec<u8> {
    let mut body = vec![AF_INET, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, address.octets());
    attribute(&mut body, IFA_ADDRESS, address.octets());
    message(RTM_NEWADDR, NLM_F_REQUEST_ACK | NLM_F_CREATE_EXCL, &body)
}

fn link_up(index: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    message(RTM_NEWLINK, NLM_F_REQUEST_ACK, &body)
}

fn default_route(index: u32, gateway: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
    attribute(&mut body, RTA_GATEWAY, gateway.octets());
    attribute(&mut body, RTA_OIF, index.to_ne_bytes());
    message(RTM_NEWROUTE, NLM_F_REQUEST_ACK | NLM_F_CREATE_EXCL, &body)
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    body.extend(8u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn request(socket: &OwnedFd, message: &[u8]) -> io::Result<()> {
    send(socket, message, SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (length, _) = recv(socket, &mut answer, RecvFlags::empty())?;
    let answer = &answer[..length];
    let code = answer
        .get(ERROR_AT)
        .filter(|_| answer[4..6] == NLMSG_ERROR.to_ne_bytes())
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
        .ok_or_else(|| io::Error::other("the kernel sent no acknowledgement"))?;
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_their_own_length() {
        let gateway = Ipv4Addr::new(10, 0, 0, 1);
        for (message, length) in [(new_address(2, gateway, 24), 40), (link_up(2), 32), (default_route(2, gateway), 44)]
        {
            assert_eq!(message.len(), length);
            assert_eq!(message[..4], u32::try_from(length).expect("small").to_ne_bytes());
        }
    }
}
