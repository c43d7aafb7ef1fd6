//! A stream to a hub outside a running node: to redeem an invite, to publish, to read what is published.
//!
//! Question and answer, one at a time. The hub is believed for nothing but its own key, which it proves
//! over the TLS channel; what it hands out is verified by whoever asked.

#![expect(clippy::wildcard_enum_match_arm, reason = "every other message of a hub is as unexpected as the next")]

use std::time::Duration;

use bytes::Bytes;
use flatlan_os::{
    ExitClass,
    stream::{DialConfig, Proxy, Stream, StreamError, dial},
};
use flatlan_relay::{
    Attach, Attached, Control, MAX_PART, MAX_ROSTER, Proof, RefusedCode, Role, VERSION,
    auth::{AttachScope, Exporter, verify_hello},
};
use flatlan_types::{HostPort, HubKey, NetworkId};

/// An attached stream.
pub struct HubClient {
    stream: Stream,
    hub: HubKey,
    network: NetworkId,
    attached: Attached,
    target: HostPort,
}

impl HubClient {
    /// Dials a hub and attaches. `proof` is made once the hub has proved its key, which may be checked there.
    ///
    /// # Errors
    /// The hub is not reachable, is not the one that was expected, or refuses.
    pub async fn attach(
        target: &HostPort,
        proxy: Option<&Proxy>,
        expected: Option<&HubKey>,
        network: NetworkId,
        role: Role,
        proof: impl FnOnce(AttachScope<'_>) -> Proof,
    ) -> Result<Self, HubClientError> {
        let config = DialConfig { proxy, ..DialConfig::new(target) };
        let mut stream = dial(config).await.map_err(HubClientError::Stream)?;
        let exporter = Exporter(stream.exporter);
        let Control::HubHello { key, signature, .. } = receive(&mut stream, target).await? else {
            return Err(HubClientError::Unexpected { hub: target.clone() });
        };
        verify_hello(&key, &exporter, &signature).map_err(|_| HubClientError::NotTheHub { hub: target.clone() })?;
        if expected.is_some_and(|expected| *expected != key) {
            return Err(HubClientError::NotTheHub { hub: target.clone() });
        }
        let proof = proof(AttachScope { exporter: &exporter, hub: &key, network: &network, role });
        let attach = Control::Attach(Attach { version: VERSION, network, role, proof });
        stream.sender.send(attach.encode().into()).await.map_err(HubClientError::Stream)?;
        match receive(&mut stream, target).await? {
            Control::Attached(attached) => Ok(Self { stream, hub: key, network, attached, target: target.clone() }),
            other => Err(HubClientError::unexpected(other, target)),
        }
    }

    /// The key that the hub has proved.
    pub fn hub(&self) -> &HubKey {
        &self.hub
    }

    /// What the hub said when it attached us.
    pub fn attached(&self) -> &Attached {
        &self.attached
    }

    /// The published roster, encoded and not verified; `None` where the hub has none.
    ///
    /// # Errors
    /// The stream broke, or the hub answers with something else.
    pub async fn fetch_roster(&mut self) -> Result<Option<Vec<u8>>, HubClientError> {
        let mut whole: Vec<u8> = Vec::new();
        let mut begun: Option<(u64, u32)> = None;
        loop {
            let offset = whole.len() as u32;
            self.send(Control::GetRoster { network: self.network, offset }).await?;
            match self.receive().await? {
                Control::RosterPart { version, total, offset: at, bytes, .. } => {
                    if total == 0 {
                        return Ok(None);
                    }
                    if total as usize > MAX_ROSTER {
                        return Err(HubClientError::Unexpected { hub: self.target.clone() });
                    }
                    if begun.is_some_and(|begun| begun != (version, total)) {
                        // published anew meanwhile
                        begun = None;
                        whole.clear();
                        continue;
                    }
                    begun = Some((version, total));
                    if at != offset || bytes.is_empty() || whole.len() + bytes.len() > total as usize {
                        return Err(HubClientError::Unexpected { hub: self.target.clone() });
                    }
                    whole.extend_from_slice(&bytes);
                    if whole.len() == total as usize {
                        return Ok(Some(whole));
                    }
                }
                other => return Err(HubClientError::unexpected(other, &self.target)),
            }
        }
    }

    /// Publishes a roster; returns once the hub has stored it, with the serial that it now holds.
    ///
    /// # Errors
    /// The hub refuses it, or the stream broke.
    pub async fn put_roster(&mut self, roster: &[u8]) -> Result<u64, HubClientError> {
        let total = roster.len() as u32;
        for (n, part) in roster.chunks(MAX_PART).enumerate() {
            let offset = (n * MAX_PART) as u32;
            self.send(Control::PutRoster { network: self.network, total, offset, bytes: part.to_vec() }).await?;
        }
        match self.receive().await? {
            Control::Stored { serial, .. } => Ok(serial),
            other => Err(HubClientError::unexpected(other, &self.target)),
        }
    }

    /// Redeems an invite; the countersigned claim, not verified.
    ///
    /// # Errors
    /// The hub refuses the claim, or the stream broke.
    pub async fn redeem(&mut self, claim: Vec<u8>) -> Result<Vec<u8>, HubClientError> {
        self.send(Control::Redeem { network: self.network, claim }).await?;
        match self.receive().await? {
            Control::Redeemed { claim, .. } => Ok(claim),
            other => Err(HubClientError::unexpected(other, &self.target)),
        }
    }

    async fn send(&mut self, message: Control) -> Result<(), HubClientError> {
        self.stream.sender.send(Bytes::from(message.encode())).await.map_err(HubClientError::Stream)
    }

    /// The next answer; what the hub says by itself meanwhile is passed over.
    async fn receive(&mut self) -> Result<Control, HubClientError> {
        loop {
            let message = receive(&mut self.stream, &self.target).await?;
            if !matches!(
                message,
                Control::Head { .. } | Control::Claims { .. } | Control::Ping { .. } | Control::Draining
            ) {
                return Ok(message);
            }
        }
    }
}

async fn receive(stream: &mut Stream, target: &HostPort) -> Result<Control, HubClientError> {
    loop {
        let message = tokio::time::timeout(ANSWER, stream.receiver.recv())
            .await
            .map_err(|_| HubClientError::Silent { hub: target.clone() })?
            .map_err(HubClientError::Stream)?
            .ok_or_else(|| HubClientError::Closed { hub: target.clone() })?;
        match Control::decode(&message) {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => {}
            Err(_) => return Err(HubClientError::Unexpected { hub: target.clone() }),
        }
    }
}

/// What goes wrong with a hub.
#[derive(Debug, thiserror::Error)]
pub enum HubClientError {
    /// The hub ended the stream.
    #[error("hub {hub} closed the connection without an answer: see its log for why")]
    Closed {
        /// Which.
        hub: HostPort,
    },
    /// Somebody else answers at the hub's address.
    #[error(
        "{hub} is not the hub that it should be: its key is another: is something in the way, or was the hub made anew?"
    )]
    NotTheHub {
        /// Where.
        hub: HostPort,
    },
    /// The hub refuses.
    #[error("hub {hub} refuses: {text}")]
    Refused {
        /// Which.
        hub: HostPort,
        /// Why, for the program.
        code: RefusedCode,
        /// Why, for the operator.
        text: String,
    },
    /// The hub does not answer.
    #[error("hub {hub} does not answer: is it overloaded?")]
    Silent {
        /// Which.
        hub: HostPort,
    },
    /// The stream cannot be dialled, or broke.
    #[error("{0}")]
    Stream(StreamError),
    /// The hub says something that fits no question.
    #[error("hub {hub} answers with something unexpected: is its version much older or newer?")]
    Unexpected {
        /// Which.
        hub: HostPort,
    },
}

impl HubClientError {
    /// What it means to whoever started the program.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::Closed { .. } | Self::Silent { .. } => ExitClass::Unreachable,
            Self::NotTheHub { .. } | Self::Refused { .. } | Self::Unexpected { .. } => ExitClass::Failed,
            Self::Stream(error) => error.exit_class(),
        }
    }

    fn unexpected(message: Control, target: &HostPort) -> Self {
        match message {
            Control::Refused { code, text, .. } => Self::Refused { hub: target.clone(), code, text },
            _ => Self::Unexpected { hub: target.clone() },
        }
    }
}

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
