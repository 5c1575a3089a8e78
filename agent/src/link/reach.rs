//! A look at a peer: does it answer at an address, is it the host that is meant, and does it take us?

use std::net::SocketAddr;
use std::time::Duration;

use sterna_shared::host::Certificate;
use sterna_shared::id::HostId;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::tls::Tls;
use super::{LinkError, handshake};

/// Goes as far as a lane does before it asks for admission: TCP, TLS both ways, hello. Returns the certificate that was shown,
/// where it can be told of. Nothing is begun at the peer.
///
/// # Errors
/// Where `peer` does not answer there, does not take our certificate, or does neither within `limit`.
pub async fn reach(
    tls: &Tls,
    peer: &HostId,
    address: SocketAddr,
    limit: Duration,
) -> Result<Option<Certificate>, LinkError> {
    let look = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let mut stream = tls.connect(peer, tcp).await?;
        handshake::greet(&mut stream).await?;
        let certificate = tls.certificate_of(&stream);
        // That the peer hears of our going is a courtesy.
        let _ = stream.shutdown().await;
        Ok(certificate)
    };
    timeout(limit, look).await.unwrap_or(Err(LinkError::Slow { limit }))
}
