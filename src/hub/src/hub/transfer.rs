//! Rosters on their way to us, part by part.
//!
//! ```text
//!  wanted ──stream is free──▶ asked ──first part──▶ running ──last part──▶ judged
//!    ▲                          │                      │
//!    └──── later ──── silent, slow, or no room ────────┘
//! ```
//!
//! A stream brings one roster at a time; what else its other end told of waits its turn. Bytes count when
//! they are here, not when they are announced, and an admin's stream, which anyone may open, has a budget
//! apart from that of attached hubs and nodes. Where a budget is spent, whoever was silent for longest
//! makes room; a roster of one part needs none. Whether a roster is good is not judged here.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use flatlan_relay::{Control, MAX_ROSTER, RefusedCode};
use flatlan_roster::RosterVersion;
use flatlan_types::NetworkId;

use super::{Hub, attach::Refusal};
use crate::forward::StreamId;

/// What one stream brings of rosters.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// Most streams bring none.
    transfer: Option<Box<Transfer>>,
    wanted: BTreeMap<NetworkId, Wanted>,
}

impl Incoming {
    /// Bytes that are here, and whose budget they are of.
    pub(super) fn held(&self) -> Option<(Source, usize)> {
        self.transfer.as_ref().map(|transfer| (transfer.source, transfer.bytes.len()))
    }
}

/// A roster to ask for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    /// As told; `None` where only that there is one.
    version: Option<RosterVersion>,
    /// Not before.
    from: Instant,
}

#[derive(Debug)]
struct Transfer {
    network: NetworkId,
    source: Source,
    /// Names the bytes, once a part that we asked for has come.
    name: Option<u64>,
    total: usize,
    bytes: Vec<u8>,
    version: Option<RosterVersion>,
    begun: Instant,
    heard: Instant,
}

/// Where a roster comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A hub or a node that told of it, asked by us.
    Asked,
    /// Whoever says to be an admin.
    Upload,
}

/// Bytes of rosters that are here in part.
#[derive(Debug, Default)]
pub(super) struct Held {
    asked: usize,
    uploads: usize,
}

impl Held {
    fn of(&mut self, source: Source) -> &mut usize {
        match source {
            Source::Asked => &mut self.asked,
            Source::Upload => &mut self.uploads,
        }
    }

    pub(super) fn free(&mut self, (source, bytes): (Source, usize)) {
        let held = self.of(source);
        *held = held.saturating_sub(bytes);
    }
}

impl Hub {
    /// Asks for a roster as soon as the stream is free.
    pub(super) fn ask_for_roster(
        &mut self,
        stream: StreamId,
        network: NetworkId,
        version: Option<RosterVersion>,
        now: Instant,
    ) {
        self.want(stream, network, Wanted { version, from: now });
        self.ask_next(stream, now);
    }

    /// The other end has no such roster.
    pub(super) fn handle_no_roster(&mut self, stream: StreamId, now: Instant) {
        let transfer = self.streams.get(&stream).and_then(|stream| stream.incoming.transfer.as_ref());
        if transfer.is_some_and(|transfer| transfer.source == Source::Asked && transfer.name.is_none()) {
            self.end_transfer(stream);
            self.ask_next(stream, now);
        }
    }

    /// A part that we asked for.
    pub(super) fn handle_part(
        &mut self,
        stream: StreamId,
        network: NetworkId,
        (name, total, offset): (u64, usize, usize),
        bytes: &[u8],
        now: Instant,
    ) {
        let Some(at) = self.streams.get_mut(&stream) else { return };
        let asked = |transfer: &&mut Box<Transfer>| transfer.network == network && transfer.source == Source::Asked;
        let Some(transfer) = at.incoming.transfer.as_mut().filter(asked) else { return };
        transfer.heard = now;
        let version = transfer.version;
        if offset == 0 {
            self.held.free((Source::Asked, transfer.bytes.len()));
            transfer.bytes.clear();
            (transfer.name, transfer.total) = (Some(name), total);
        } else if transfer.name != Some(name) {
            // It changed under our hands; what was told of it meanwhile is what we get.
            self.held.free((Source::Asked, transfer.bytes.len()));
            transfer.bytes.clear();
            transfer.name = None;
            at.incoming.wanted.remove(&network);
            return self.send(stream, Control::GetRoster { network, offset: 0 });
        }
        match self.receive(stream, network, (total, offset), bytes, now) {
            Err(refusal) => {
                tracing::debug!(?refusal, "roster not taken");
                // The transfer has ended with it.
                self.want(stream, network, Wanted { version, from: now + RETRY });
                self.ask_next(stream, now);
            }
            Ok(Received::Part { next }) => {
                let offset = u32::try_from(next).unwrap_or(u32::MAX);
                self.send(stream, Control::GetRoster { network, offset });
            }
            Ok(Received::Whole(bundle)) => {
                if let Err(refusal) = self.adopt(network, &bundle, None, now) {
                    tracing::debug!(?refusal, "roster not adopted");
                }
                self.ask_next(stream, now);
            }
        }
    }

    /// A part that an admin uploads.
    pub(super) fn handle_put(
        &mut self,
        stream: StreamId,
        network: NetworkId,
        (total, offset): (usize, usize),
        bytes: &[u8],
        now: Instant,
    ) {
        if offset == 0 {
            self.end_transfer(stream);
            let transfer = Transfer::new(network, Source::Upload, total, now);
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.incoming.transfer = Some(Box::new(transfer));
            }
        }
        if let Some(transfer) = self.streams.get_mut(&stream).and_then(|stream| stream.incoming.transfer.as_mut()) {
            transfer.heard = now;
        }
        let outcome = match self.receive(stream, network, (total, offset), bytes, now) {
            Err(refusal) => Err(refusal),
            Ok(Received::Part { .. }) => Ok(()),
            Ok(Received::Whole(bundle)) => self.adopt(network, &bundle, Some(stream), now),
        };
        if let Err(refusal) = outcome {
            self.refuse_request(stream, refusal);
        }
    }

    /// Ends what stands still, and asks for what is due.
    pub(super) fn tick_transfers(&mut self, now: Instant) {
        let mut late = Vec::new();
        let mut free = Vec::new();
        for (stream, state) in &self.streams {
            match &state.incoming.transfer {
                Some(transfer) if transfer.late(now) => late.push((*stream, transfer.source)),
                None if !state.incoming.wanted.is_empty() => free.push(*stream),
                Some(_) | None => {}
            }
        }
        for (stream, source) in late {
            match source {
                Source::Asked => self.ask_later(stream, now),
                Source::Upload => {
                    self.end_transfer(stream);
                    self.refuse_request(stream, Refusal::new(RefusedCode::Silent, "the roster came too slowly"));
                }
            }
        }
        for stream in free {
            self.ask_next(stream, now);
        }
    }

    fn receive(
        &mut self,
        stream: StreamId,
        network: NetworkId,
        (total, offset): (usize, usize),
        bytes: &[u8],
        now: Instant,
    ) -> Result<Received, Refusal> {
        let out_of_order = || Refusal::new(RefusedCode::BadMessage, "a part out of order");
        let transfer = self.streams.get(&stream).and_then(|stream| stream.incoming.transfer.as_ref());
        let transfer = transfer.ok_or_else(out_of_order)?;
        let (source, begun) = (transfer.source, transfer.bytes.len());
        let fits = transfer.network == network
            && transfer.total == total
            && begun == offset
            && !bytes.is_empty()
            && offset.saturating_add(bytes.len()) <= total;
        if total == 0 || total > MAX_ROSTER {
            self.end_transfer(stream);
            return Err(Refusal::new(RefusedCode::BadRoster, "no roster is of that length"));
        }
        if !fits {
            self.end_transfer(stream);
            return Err(out_of_order());
        }
        if bytes.len() == total {
            self.end_transfer(stream);
            return Ok(Received::Whole(bytes.to_vec()));
        }
        if let Err(refusal) = self.make_room(stream, source, bytes.len(), now) {
            self.end_transfer(stream);
            return Err(refusal);
        }
        let transfer = self.streams.get_mut(&stream).and_then(|stream| stream.incoming.transfer.as_mut());
        let transfer = transfer.ok_or_else(out_of_order)?;
        transfer.bytes.extend_from_slice(bytes);
        *self.held.of(source) += bytes.len();
        let next = transfer.bytes.len();
        if next < total {
            return Ok(Received::Part { next });
        }
        let whole = self.end_transfer(stream).unwrap_or_default();
        Ok(Received::Whole(whole))
    }

    fn make_room(&mut self, stream: StreamId, source: Source, more: usize, now: Instant) -> Result<(), Refusal> {
        let budget = match source {
            Source::Asked => self.config.limits.transfers,
            Source::Upload => self.config.limits.uploads,
        };
        let full = || Refusal::new(RefusedCode::Quota, "too many rosters are being received: try later");
        while *self.held.of(source) + more > budget {
            let others = self.streams.iter().filter(|(other, _)| **other != stream);
            let others = others.filter_map(|(other, state)| Some((*other, state.incoming.transfer.as_ref()?)));
            let others = others.filter(|(_, transfer)| transfer.source == source && !transfer.bytes.is_empty());
            let stalest = others.min_by_key(|(_, transfer)| transfer.heard).map(|(other, _)| other);
            let stalest = stalest.ok_or_else(full)?;
            match source {
                Source::Asked => self.ask_later(stalest, now),
                Source::Upload => {
                    self.end_transfer(stalest);
                    self.refuse_request(stalest, full());
                }
            }
        }
        Ok(())
    }

    fn want(&mut self, stream: StreamId, network: NetworkId, wanted: Wanted) {
        if let Some(state) = self.streams.get_mut(&stream)
            && (state.incoming.wanted.len() < MAX_WANTED || state.incoming.wanted.contains_key(&network))
        {
            state.incoming.wanted.insert(network, wanted);
        }
    }

    /// Gives a transfer up for now.
    fn ask_later(&mut self, stream: StreamId, now: Instant) {
        let transfer = self.streams.get(&stream).and_then(|stream| stream.incoming.transfer.as_ref());
        if let Some((network, version)) = transfer.map(|transfer| (transfer.network, transfer.version)) {
            self.end_transfer(stream);
            self.want(stream, network, Wanted { version, from: now + RETRY });
        }
        self.ask_next(stream, now);
    }

    fn ask_next(&mut self, stream: StreamId, now: Instant) {
        loop {
            let Some(state) = self.streams.get_mut(&stream).filter(|state| state.incoming.transfer.is_none()) else {
                return;
            };
            let due = state.incoming.wanted.iter().find(|(_, wanted)| wanted.from <= now);
            let Some((network, Wanted { version, .. })) = due.map(|(network, wanted)| (*network, *wanted)) else {
                return;
            };
            state.incoming.wanted.remove(&network);
            let ours =
                self.networks.get(&network).and_then(|state| state.roster.as_ref()).map(|roster| roster.version());
            // Perhaps another stream brought it meanwhile.
            if ours.is_some_and(|ours| version.is_none_or(|version| version <= ours)) {
                continue;
            }
            let transfer = Transfer { version, ..Transfer::new(network, Source::Asked, 0, now) };
            state.incoming.transfer = Some(Box::new(transfer));
            return self.send(stream, Control::GetRoster { network, offset: 0 });
        }
    }

    /// Ends a stream's transfer; its bytes.
    fn end_transfer(&mut self, stream: StreamId) -> Option<Vec<u8>> {
        let ended = self.streams.get_mut(&stream)?.incoming.transfer.take()?;
        self.held.free((ended.source, ended.bytes.len()));
        Some(ended.bytes)
    }
}

impl Transfer {
    fn new(network: NetworkId, source: Source, total: usize, now: Instant) -> Self {
        Self { network, source, name: None, total, bytes: Vec::new(), version: None, begun: now, heard: now }
    }

    fn late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) >= PART_LIFE || now.saturating_duration_since(self.begun) >= LIFE
    }
}

enum Received {
    Part { next: usize },
    Whole(Vec<u8>),
}

/// Without a part for so long a transfer is given up.
const PART_LIFE: Duration = Duration::from_secs(10);
/// However many parts come, a transfer ends by then.
const LIFE: Duration = Duration::from_secs(300);
/// When to ask again for what did not come.
const RETRY: Duration = Duration::from_secs(10);
/// Rosters that one stream's other end may have told of.
const MAX_WANTED: usize = 2_048;
