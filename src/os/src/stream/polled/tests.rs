use std::{future::poll_fn, task::Poll, time::Duration};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::yield_now,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message as WsMessage;

use super::*;
use crate::{
    clock,
    stream::{Socket, Stream, tests::pair},
    testing::async_in_empty_netns,
};

const BOUNDS: StreamBounds = StreamBounds { together: 2 << 20, patience: Duration::from_millis(20) };
const WAIT: Duration = Duration::from_secs(20);

/// A packet thread's part, in the hands of a test.
struct Thread {
    set: StreamSet<u8>,
    inbox: StreamInbox,
}

impl Thread {
    fn new() -> Self {
        Self { set: StreamSet::new(BOUNDS).unwrap(), inbox: StreamInbox::new() }
    }

    async fn add(&mut self, key: u8, stream: Stream) -> StreamEnd {
        let (data, end) = hand_over(stream.sender, stream.receiver, Vec::new()).await.unwrap();
        self.set.add(key, data, clock::now());
        end
    }

    fn round(&mut self) -> Vec<(u8, Vec<u8>)> {
        let now = clock::now();
        let mut all = Vec::new();
        while let Some(key) = self.set.recv(&mut self.inbox, now) {
            self.inbox.each(|message| all.push((key, message.to_vec())));
        }
        self.set.flush(now);
        all
    }

    /// Goes round until so many messages came.
    async fn messages(&mut self, count: usize) -> Vec<(u8, Vec<u8>)> {
        let mut all = Vec::new();
        let going = async {
            while all.len() < count {
                all.extend(self.round());
                yield_now().await;
            }
        };
        timeout(WAIT, going).await.expect("messages");
        all
    }

    /// Goes round while something else happens.
    async fn until<T>(&mut self, what: impl Future<Output = T>) -> T {
        let going = async {
            loop {
                self.round();
                yield_now().await;
            }
        };
        tokio::select! {
            done = timeout(WAIT, what) => done.expect("it happens"),
            () = going => unreachable!("it goes round for ever"),
        }
    }

    async fn end(&mut self, end: StreamEnd) -> String {
        match self.until(end.ended()).await {
            Ok(()) => "goodbye".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    fn open(&self) -> usize {
        self.set.streams.len()
    }
}

fn socket(stream: Stream) -> Socket {
    stream.sender.0.reunite(stream.receiver.0).unwrap()
}

/// Below WebSocket.
fn tls(stream: Stream) -> TlsStream<tokio::net::TcpStream> {
    *socket(stream).into_inner().into_parts().0
}

/// Below TLS.
fn parts(stream: Stream) -> (tokio::net::TcpStream, Connection) {
    match tls(stream) {
        TlsStream::Client(stream) => {
            let (tcp, tls) = stream.into_inner();
            (tcp, Connection::Client(tls))
        }
        TlsStream::Server(stream) => {
            let (tcp, tls) = stream.into_inner();
            (tcp, Connection::Server(tls))
        }
    }
}

fn sealed(tls: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn numbered(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + salt) as u8).collect()
}

#[test]
fn messages_of_any_length_go_both_ways_between_two_threads() {
    async_in_empty_netns(|| async {
        let (node, hub) = pair().await;
        let (mut one, mut other) = (Thread::new(), Thread::new());
        let _ends = (one.add(1, node).await, other.add(2, hub).await);
        for length in [0, 1, 125, 126, 16_384, 65_535, 65_536, MOST_MESSAGE] {
            let (there, back) = (numbered(length, 1), numbered(length, 2));
            one.set.send(1, &there, clock::now()).unwrap();
            one.set.flush(clock::now());
            assert!(other.messages(1).await == [(2, there)], "{length}");
            other.set.send(2, &back, clock::now()).unwrap();
            other.set.flush(clock::now());
            assert!(one.messages(1).await == [(1, back)], "{length}");
        }
        let too_long = vec![0; MOST_MESSAGE + 1];
        assert_eq!(one.set.send(1, &too_long, clock::now()), Err(StreamRefusal::Full));
        assert_eq!(one.set.send(7, b"x", clock::now()), Err(StreamRefusal::NoStream));
    });
}

#[test]
fn a_stream_in_a_tasks_hands_and_one_in_a_threads_understand_each_other() {
    async_in_empty_netns(|| async {
        for dialled in [true, false] {
            let (node, hub) = pair().await;
            let (mut task, thread) = if dialled { (hub, node) } else { (node, hub) };
            let mut there = Thread::new();
            let _end = there.add(1, thread).await;
            for length in [0, 200, 70_000] {
                let message = numbered(length, 5);
                there.set.send(1, &message, clock::now()).unwrap();
                there.set.flush(clock::now());
                let got = there.until(task.receiver.recv()).await.unwrap().unwrap();
                assert!(got == message, "{length}");
                let (sent, got) = tokio::join!(task.sender.send(message.clone().into()), there.messages(1));
                sent.unwrap();
                assert!(got == [(1, message)], "{length}");
            }
        }
    });
}

#[test]
fn what_came_behind_the_answer_is_not_lost() {
    async_in_empty_netns(|| async {
        let (mut node, mut hub) = pair().await;
        let messages: Vec<_> = (0..4).map(|n| Bytes::from(numbered(20_000, n))).collect();
        for message in &messages {
            hub.sender.feed(message.clone()).await.unwrap();
        }
        let (flushed, answer) = tokio::join!(hub.sender.flush(), node.receiver.recv());
        flushed.unwrap();
        assert_eq!(answer.unwrap().unwrap(), messages[0]);
        let second = node.receiver.recv().await.unwrap().unwrap();
        let (data, _end) = hand_over(node.sender, node.receiver, vec![second]).await.unwrap();
        let mut thread = Thread::new();
        thread.set.add(1, data, clock::now());
        let got = thread.messages(3).await;
        assert!(got.iter().map(|(_, message)| message).eq(&messages[1..]));
    });
}

#[test]
fn a_frame_of_which_the_task_has_read_half_is_not_lost() {
    async_in_empty_netns(|| async {
        let (node, hub) = pair().await;
        let mut node = tls(node);
        let mut hub = socket(hub);
        let frame = [Written::new(Kind::Binary, 100, Side::Client).bytes(), &numbered(100, 3)].concat();
        let (half, rest) = frame.split_at(50);
        node.write_all(half).await.unwrap();
        node.flush().await.unwrap();
        let reading = async {
            while hub.get_ref().is_between() {
                poll_fn(|cx| {
                    assert!(hub.poll_next_unpin(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
                yield_now().await;
            }
        };
        timeout(WAIT, reading).await.unwrap();
        let (sender, receiver) = hub.split();
        let writing = async {
            node.write_all(rest).await.unwrap();
            node.flush().await.unwrap();
        };
        let handing = hand_over(StreamSender(sender), StreamReceiver(receiver), Vec::new());
        let (handed, ()) = tokio::join!(handing, writing);
        let mut thread = Thread::new();
        thread.set.add(1, handed.unwrap().0, clock::now());
        assert_eq!(thread.messages(1).await, [(1, numbered(100, 3))]);
    });
}

#[test]
fn half_a_frame_of_which_the_rest_never_comes_is_waited_for_a_bounded_time() {
    async_in_empty_netns(|| async {
        let (node, hub) = pair().await;
        let mut node = tls(node);
        let mut hub = socket(hub);
        let frame = [Written::new(Kind::Binary, 100, Side::Client).bytes(), &numbered(100, 3)].concat();
        node.write_all(&frame[..50]).await.unwrap();
        node.flush().await.unwrap();
        let reading = async {
            while hub.get_ref().is_between() {
                poll_fn(|cx| {
                    assert!(hub.poll_next_unpin(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
                yield_now().await;
            }
        };
        timeout(WAIT, reading).await.unwrap();
        let (sender, receiver) = hub.split();
        time::pause();
        let handed = hand_over(StreamSender(sender), StreamReceiver(receiver), Vec::new());
        let error = timeout(WAIT, handed).await.expect("an end").unwrap_err();
        assert_eq!(error.to_string(), "the connection broke: timed out");
    });
}

#[test]
fn whoever_sends_no_message_does_not_keep_the_thread() {
    async_in_empty_netns(|| async {
        let (node, hub) = pair().await;
        let mut thread = Thread::new();
        let _end = thread.add(1, hub).await;
        let mut node = tls(node);
        // an unasked answer, and the rest of nothing
        let nothing = [Written::new(Kind::Pong, 100, Side::Client).bytes(), &[7; 100]].concat().repeat(4000);
        let message = [Written::new(Kind::Binary, 2, Side::Client).bytes(), b"hi"].concat();
        let sending = async {
            node.write_all(&[nothing, message].concat()).await.unwrap();
            node.flush().await.unwrap();
        };
        let receiving = async {
            let (mut without, mut all) = (0, Vec::new());
            while all.is_empty() {
                if thread.set.recv(&mut thread.inbox, clock::now()) == Some(1) {
                    thread.inbox.each(|message| all.push(message.to_vec()));
                    without += usize::from(all.is_empty());
                }
                yield_now().await;
            }
            (without, all)
        };
        let (received, ()) = tokio::join!(timeout(WAIT, receiving), sending);
        let (without, all) = received.expect("a message");
        assert_eq!(all, [b"hi"]);
        assert!(without > 2, "{without} reads told of nothing");
    });
}

#[test]
fn where_nothing_is_free_a_stream_that_is_read_loses_nothing() {
    async_in_empty_netns(|| async {
        let (_slow, hub) = pair().await;
        let (mut quick, other) = pair().await;
        let mut thread = Thread::new();
        let _ends = (thread.add(1, hub).await, thread.add(2, other).await);
        while thread.set.send(1, &[7; 60_000], clock::now()).is_ok() {}
        // as if there were many of these
        thread.set.bounds.together = thread.set.waiting;
        assert_eq!(thread.set.send(1, b"x", clock::now()), Err(StreamRefusal::Full));
        for _ in 0..100 {
            thread.set.send(2, b"small", clock::now()).unwrap();
        }
        for _ in 0..100 {
            assert_eq!(thread.until(quick.receiver.recv()).await.unwrap().unwrap(), "small");
        }
    });
}

#[test]
fn the_end_of_tls_without_a_goodbye_is_an_end() {
    async_in_empty_netns(|| async {
        let (node, hub) = pair().await;
        let mut thread = Thread::new();
        let end = thread.add(1, hub).await;
        let (mut tcp, mut tls) = parts(node);
        tls.send_close_notify();
        tcp.write_all(&sealed(&mut tls)).await.unwrap();
        assert_eq!(thread.end(end).await, "the connection broke: unexpected end of file");
        drop(tcp);
    });
}

#[test]
fn a_thread_that_ends_says_goodbye_on_every_stream() {
    async_in_empty_netns(|| async {
        let (mut node, hub) = pair().await;
        let mut thread = Thread::new();
        let end = thread.add(1, hub).await;
        drop(thread);
        assert_eq!(timeout(WAIT, node.receiver.recv()).await.unwrap().unwrap(), None);
        assert!(end.ended().await.is_ok());
    });
}

#[test]
fn whoever_does_not_read_loses_frames_and_holds_up_nobody() {
    async_in_empty_netns(|| async {
        let ((slow, hub), (quick, other)) = (pair().await, pair().await);
        let mut thread = Thread::new();
        let _ends = (thread.add(1, hub).await, thread.add(2, other).await);
        let mut sent = Vec::new();
        loop {
            let message = numbered(60_000, sent.len());
            if thread.set.send(1, &message, clock::now()).is_err() {
                break;
            }
            sent.push(message);
        }
        thread.set.flush(clock::now());
        let Some(Place::Open(_, polled)) = thread.set.streams.values().next() else { panic!("the slow stream") };
        let waiting = polled.backlog.bytes();
        assert!(
            polled.stuck && waiting < BOUNDS.together / 4 + MOST_MESSAGE && waiting == thread.set.waiting,
            "{waiting}"
        );

        let mut quick = quick;
        thread.set.send(2, b"quick", clock::now()).unwrap();
        assert_eq!(thread.until(quick.receiver.recv()).await.unwrap().unwrap(), "quick");
        quick.sender.send(Bytes::from_static(b"answer")).await.unwrap();
        assert_eq!(thread.messages(1).await, [(2, b"answer".to_vec())]);

        // what was taken comes whole, in pieces, as there is room
        let mut slow = slow;
        for message in sent {
            let got = thread.until(slow.receiver.recv()).await.unwrap().unwrap();
            assert!(got == message);
        }
        assert_eq!(thread.set.send(1, b"again", clock::now()), Ok(()));
        assert_eq!(thread.until(slow.receiver.recv()).await.unwrap().unwrap(), "again");
        assert_eq!(thread.set.waiting, 0);
    });
}

#[test]
fn a_ping_is_answered_and_a_goodbye_ends_the_stream() {
    async_in_empty_netns(|| async {
        let (node, hub) = pair().await;
        let mut thread = Thread::new();
        let end = thread.add(1, hub).await;
        let mut node = socket(node);
        node.send(WsMessage::Ping(Bytes::from_static(b"here?"))).await.unwrap();
        let answer = thread.until(node.next()).await.unwrap().unwrap();
        assert_eq!(answer, WsMessage::Pong(Bytes::from_static(b"here?")));
        // a message just before the end is not lost
        node.feed(WsMessage::binary(b"last".to_vec())).await.unwrap();
        node.close(None).await.unwrap();
        assert_eq!(thread.messages(1).await, [(1, b"last".to_vec())]);
        assert_eq!(thread.end(end).await, "goodbye");
        assert_eq!(thread.open(), 0);
    });
}

#[test]
fn a_stream_that_is_removed_says_goodbye() {
    async_in_empty_netns(|| async {
        let (mut node, hub) = pair().await;
        let mut thread = Thread::new();
        let end = thread.add(1, hub).await;
        thread.set.remove(1);
        assert_eq!(timeout(WAIT, node.receiver.recv()).await.unwrap().unwrap(), None);
        assert_eq!(thread.end(end).await, "goodbye");
    });
}

#[test]
fn garbage_ends_its_stream_and_no_other() {
    async_in_empty_netns(|| async {
        let mut thread = Thread::new();
        let (mut good, hub) = pair().await;
        let _good_end = thread.add(0, hub).await;
        let masked = |length: &[u8]| [&[0x82], length, &[0; 4]].concat();
        let cases = [
            (vec![0x82, 1, 0], "the connection broke: a frame is masked the wrong way"),
            (masked(&[0xff, 0, 0, 0, 0, 0, 1, 0x18, 1]), "the connection broke: a message is too long"),
            (vec![0x81, 0x81, 0, 0, 0, 0, 0], "the other end sent a text message: it does not speak this protocol"),
            (vec![0xff; 200], "the connection broke: a frame of a kind that nobody agreed on"),
        ];
        for (garbage, reason) in cases {
            let (node, hub) = pair().await;
            let end = thread.add(1, hub).await;
            let mut node = tls(node);
            node.write_all(&garbage).await.unwrap();
            node.flush().await.unwrap();
            assert_eq!(thread.end(end).await, reason);
        }
        let (node, hub) = pair().await;
        let end = thread.add(1, hub).await;
        let (mut tcp, _tls) = parts(node);
        tcp.write_all(&[0x17; 2000]).await.unwrap();
        let reason = thread.end(end).await;
        assert!(reason.starts_with("the connection broke: "), "{reason}");

        assert_eq!(thread.open(), 1);
        good.sender.send(Bytes::from_static(b"good")).await.unwrap();
        assert_eq!(thread.messages(1).await, [(0, b"good".to_vec())]);
    });
}

#[test]
fn a_close_in_the_middle_of_a_record_is_told_and_what_was_whole_is_not_lost() {
    async_in_empty_netns(|| async {
        let (node, hub) = pair().await;
        let mut thread = Thread::new();
        let end = thread.add(1, hub).await;
        let (mut tcp, mut tls) = parts(node);
        let mut frame = |payload: &[u8]| {
            let header = Written::new(Kind::Binary, payload.len(), Side::Client);
            tls.writer().write_all(header.bytes()).unwrap();
            tls.writer().write_all(payload).unwrap();
            sealed(&mut tls)
        };
        let (whole, cut) = (frame(b"whole"), frame(&[7; 5000]));
        tcp.write_all(&[&whole, &cut[..2000]].concat()).await.unwrap();
        tcp.shutdown().await.unwrap();
        assert_eq!(thread.messages(1).await, [(1, b"whole".to_vec())]);
        assert_eq!(thread.end(end).await, "the connection broke: unexpected end of file");
    });
}

#[test]
fn keys_are_renewed_by_either_end_while_messages_go() {
    async_in_empty_netns(|| async {
        let (node, hub) = pair().await;
        let mut thread = Thread::new();
        let _end = thread.add(1, hub).await;
        let (mut tcp, mut tls) = parts(node);
        tls.refresh_traffic_keys().unwrap();
        let header = Written::new(Kind::Binary, 3, Side::Client);
        tls.writer().write_all(&[header.bytes(), b"new"].concat()).unwrap();
        let bytes = sealed(&mut tls);
        tcp.write_all(&bytes).await.unwrap();
        assert_eq!(thread.messages(1).await, [(1, b"new".to_vec())]);
        // the answer is sealed with new keys of the other end, too
        if let Some(Place::Open(_, polled)) = thread.set.streams.values_mut().next() {
            polled.tls.refresh_traffic_keys().unwrap();
        }
        thread.set.send(1, b"newer", clock::now()).unwrap();
        thread.set.flush(clock::now());
        let mut plain = Vec::new();
        while plain.len() < 7 {
            let mut bytes = [0; 1000];
            let count = timeout(WAIT, tcp.read(&mut bytes)).await.unwrap().unwrap();
            let mut rest = &bytes[..count];
            while !rest.is_empty() {
                tls.read_tls(&mut rest).unwrap();
                tls.process_new_packets().unwrap();
            }
            let _ = tls.reader().read_to_end(&mut plain);
        }
        assert_eq!(plain, [&[0x82, 5][..], b"newer"].concat());
    });
}

#[test]
fn what_is_sent_before_the_stream_comes_waits_for_it_but_little() {
    async_in_empty_netns(|| async {
        let (mut node, hub) = pair().await;
        let mut thread = Thread::new();
        thread.set.expect(1);
        thread.set.send(1, b"first", clock::now()).unwrap();
        thread.set.send(1, b"second", clock::now()).unwrap();
        assert_eq!(thread.set.send(1, &vec![0; MOST_MESSAGE], clock::now()), Err(StreamRefusal::Full));
        let _end = thread.add(1, hub).await;
        for expected in ["first", "second"] {
            assert_eq!(thread.until(node.receiver.recv()).await.unwrap().unwrap(), expected);
        }
        thread.set.expect(2);
        thread.set.remove(2);
        assert_eq!(thread.open(), 1);
    });
}

#[test]
fn an_idle_stream_holds_no_buffer_and_half_a_message_only_its_own_size() {
    async_in_empty_netns(|| async {
        let (node, hub) = pair().await;
        let mut thread = Thread::new();
        let _end = thread.add(1, hub).await;
        let mut node = tls(node);
        let message = numbered(60_000, 0);
        let frame = [Written::new(Kind::Binary, message.len(), Side::Client).bytes(), &message].concat();
        node.write_all(&[&frame[..], &frame[..1000]].concat()).await.unwrap();
        node.flush().await.unwrap();
        assert!(thread.messages(1).await == [(1, message.clone())]);
        let held = |thread: &Thread| match thread.set.streams.values().next() {
            Some(Place::Open(_, polled)) => polled.plain.capacity(),
            _ => panic!("the stream"),
        };
        let waiting = async {
            while held(&thread) == 0 {
                assert_eq!(thread.round(), []);
                yield_now().await;
            }
        };
        timeout(WAIT, waiting).await.unwrap();
        assert!((1000..4000).contains(&held(&thread)), "{}", held(&thread));
        node.write_all(&frame[1000..]).await.unwrap();
        node.flush().await.unwrap();
        assert!(thread.messages(1).await == [(1, message)]);
        assert_eq!(held(&thread), 0);
    });
}
