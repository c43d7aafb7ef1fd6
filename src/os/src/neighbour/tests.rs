use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
};

use super::*;
use crate::{route::Netlink, testing::async_in_empty_netns};

/// The devices `a` and `b` of one wire, both of use at once, and their ports.
async fn wire_of(netlink: &Netlink) -> [Port; 2] {
    // else their own addresses are of use only after a second
    std::fs::write("/proc/sys/net/ipv6/conf/default/dad_transmits", "0").unwrap();
    let a = netlink.veth_for_test(&[]).await;
    let b = netlink.link("b").await.unwrap();
    let addresses = ["192.0.2.2/24", "2001:db8::2/64"].map(|address| address.parse().unwrap());
    netlink.set_addresses(b, &addresses).await.unwrap();
    [netlink.port_for_test(a).await, netlink.port_for_test(b).await]
}

/// A host of `b` sends something to an address, so that its kernel looks for it.
fn look_for(ip: &str) {
    let target: IpAddr = ip.parse().unwrap();
    let own: IpAddr = if target.is_ipv4() { [192, 0, 2, 2].into() } else { "2001:db8::2".parse().unwrap() };
    let socket = UdpSocket::bind(SocketAddr::new(own, 0)).unwrap();
    socket2::SockRef::from(&socket).bind_device(Some(b"b")).unwrap();
    socket.send_to(b"?", SocketAddr::new(target, 9)).unwrap();
}

#[test]
fn a_host_that_looks_for_an_address_of_nobody_is_heard_and_believes_the_answer() {
    async_in_empty_netns(|| async {
        let netlink = Netlink::open().unwrap();
        let [a, b] = wire_of(&netlink).await;
        let listener = Listener::open(a).unwrap();
        for (target, asker) in [("192.0.2.5", "192.0.2.2"), ("2001:db8::5", "2001:db8::2")] {
            look_for(target);
            let question = async {
                loop {
                    let question = listener.next().await.unwrap();
                    if question.target == target.parse::<IpAddr>().unwrap() {
                        return question;
                    }
                }
            };
            let question = timeout(PATIENCE, question).await.expect("it is heard");
            let heard = (question.asker.to_string(), question.asked, question.ethernet);
            assert_eq!(heard, (asker.to_owned(), Asked::Everybody, b.ethernet));
            listener.answer(&question).unwrap();
            netlink.neighbour_is_at_for_test(b.link, target, a).await;
        }
    });
}

#[test]
fn who_is_asked_alone_knows_so() {
    async_in_empty_netns(|| async {
        let netlink = Netlink::open().unwrap();
        let [a, b] = wire_of(&netlink).await;
        let listener = Listener::open(a).unwrap();
        let (asker, target) = ([192, 0, 2, 2].into(), [192, 0, 2, 5].into());
        let request = wire::arp(wire::REQUEST, (b.ethernet, asker), (a.ethernet, target));
        send(&open().unwrap(), b, ARP, a.ethernet, &request).unwrap();
        let question = timeout(PATIENCE, listener.next()).await.unwrap().unwrap();
        let asked = Asked::Us;
        assert_eq!(question, Solicitation { target: target.into(), asker: asker.into(), asked, ethernet: b.ethernet });
    });
}

#[test]
fn a_device_that_takes_nothing_keeps_nobody_waiting_who_announces_much() {
    async_in_empty_netns(|| async {
        let netlink = Netlink::open().unwrap();
        let [a, _] = wire_of(&netlink).await;
        let none = ["qdisc", "add", "dev", "a", "root", "tbf", "rate", "8bit", "burst", "1600", "limit", "10000000"];
        assert!(Command::new("tc").args(none).status().unwrap().success());
        let ips: Vec<IpAddr> = (0..1024_u16).map(|n| [10, 1, (n >> 8) as u8, n as u8].into()).collect();
        let error = announce(a, &ips).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    });
}

#[test]
fn a_device_that_goes_down_and_comes_up_is_heard_again() {
    async_in_empty_netns(|| async {
        let netlink = Netlink::open().unwrap();
        let [a, _] = wire_of(&netlink).await;
        let listener = Listener::open(a).unwrap();
        netlink.set_down_for_test(a.link).await;
        assert!(timeout(Duration::from_millis(20), listener.next()).await.is_err(), "that is no end");
        netlink.set_up(a.link).await.unwrap();
        let heard = async {
            loop {
                look_for("192.0.2.5");
                if timeout(Duration::from_millis(100), listener.next()).await.is_ok() {
                    return;
                }
            }
        };
        timeout(PATIENCE, heard).await.expect("it is heard");
    });
}

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);
