//! What becomes of the node when a part of it breaks.

use flatlan_datapath::Worker;
use flatlan_lab::Namespace;
use flatlan_os::{Offload, tun::TunBackend};
use flatlan_types::{BootEpoch, LaneKey, NetworkId, NodeSeed, PeerSlot};
use flatlan_wg::{Admission, Handshake, OpenError, Opened, PeerSession, SealError, Sessions};

use super::*;

/// An engine whose code is wrong.
struct Broken;

#[tokio::test]
async fn a_packet_thread_that_panics_ends_the_node_with_an_error_that_says_so() {
    let (mut threads, unstarted, mut told) = PacketThreads::prepare(Workers::ONE).unwrap();
    let machine = Namespace::create(&format!("panic{}", std::process::id()), None).unwrap();
    let (tun, udp) = machine.run(|| {
        let backend = TunBackend::Auto;
        let config = TunConfig {
            name: "fl0".to_owned(),
            mtu: 1400,
            backend,
            offload: Offload::Auto,
            queues: Queues::One,
            addresses: vec![],
        };
        let udp = UdpSocket::bind("[::]:0".parse().unwrap(), UdpOptions::default()).unwrap();
        (Tun::create(&config).unwrap(), udp)
    });
    let worker = WorkerConfig {
        network: NetworkId::from_bytes([7; 32]),
        secret: Arc::new(NodeSeed::from_bytes([1; 32]).derive()),
        epoch: BootEpoch(1),
        mtu: 1400,
        gro: Gro::ALL,
        class_mask: 0xff,
        spread: flatlan_path::Spread::Off,
        seed: 1,
        share: Share::default(),
    };
    let refused = Refused::new(Offload::Auto, Gro::ALL);
    threads.start(unstarted, vec![udp], (tun, refused), |_| Worker::new(worker.clone(), Broken)).unwrap();
    let error = packets_ended(&mut told.ended).await;
    assert_eq!(
        error.to_string(),
        "the packet thread ended: a bug in flatlan (please report it with the log): a machine that panics"
    );
    assert_eq!(error.exit_class(), ExitClass::Failed);
    // whoever still asks gets an answer, and the thread can be waited for
    assert!(threads.report().await.is_none());
    threads.stop().await;
}

impl Sessions for Broken {
    fn open_lane(&mut self, _: LaneKey, _: PeerSession, _: Instant) {}

    fn close_lane(&mut self, _: LaneKey) {}

    fn close_peer(&mut self, _: PeerSlot) {}

    fn rest_peer(&mut self, _: PeerSlot) {}

    fn initiate(&mut self, _: LaneKey, _: Instant, _: &mut [u8]) -> Option<usize> {
        None
    }

    fn seal(&mut self, _: LaneKey, _: &[u8], _: Instant, _: &mut [u8]) -> Result<usize, SealError> {
        Err(SealError::NoSession)
    }

    fn open(&mut self, _: &[u8], _: Instant, _: &mut [u8]) -> Result<Opened, OpenError> {
        Err(OpenError::UnknownIndex)
    }

    fn handle_handshake(&mut self, _: LaneKey, _: &[u8], _: Instant, _: &mut [u8]) -> Result<Handshake, OpenError> {
        Err(OpenError::UnknownIndex)
    }

    fn stock_lane(&mut self, _: &[u8], _: Endpoint, _: Instant, _: &mut [u8]) -> Admission {
        Admission::Refused
    }

    fn handle_timeout(&mut self, _: Instant, _: &mut dyn FnMut(LaneKey, &[u8])) {}

    fn poll_timeout(&self) -> Option<Instant> {
        panic!("a machine that panics");
    }

    fn is_established(&self, _: LaneKey) -> bool {
        false
    }

    fn last_handshake(&self, _: LaneKey, _: Instant) -> Option<Duration> {
        None
    }
}
