//! Tokens: whole, cut, mistyped, or something else.

use flatlan_roster::{DecodeError, Token, TokenError, source::Replace};

use crate::world::{NOW, World, hub, invite, name};

fn token() -> String {
    let mut world = World::with_two();
    world.invite("b", 4, Replace::Yes);
    world.source.token(&name("b"), invite(4)).unwrap().to_text().unwrap().to_string()
}

fn refusal(text: &str) -> TokenError {
    text.parse::<Token>().err().expect("it was accepted")
}

#[test]
fn a_token_carries_what_a_machine_needs_to_join() {
    let (world, text) = (World::new(), token());
    assert!(text.starts_with("fltoken1") && text.len() < 1023, "{} characters", text.len());
    for text in [text.clone(), format!(" {text}\n"), text.to_uppercase(), format!("{}\n{}", &text[..80], &text[80..])] {
        let token: Token = text.parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(token.network(), world.id());
        assert_eq!(token.secret.public(), invite(4).public());
        assert_eq!(token.redeemer, hub(1).public());
        assert_eq!((token.member, token.redeemer_name, token.network_name), (name("b"), name("paris"), name("lab")));
        assert_eq!(token.expires, NOW.after(86_400));
        assert_eq!(token.endpoints, ["192.0.2.1:443".parse().unwrap()]);
    }
}

#[test]
fn a_token_cut_off_or_mistyped_is_refused_wherever_it_is() {
    let text = token();
    for end in 1..text.len() {
        assert!(matches!(refusal(&text[..end]), TokenError::Checksum { .. }), "{end}");
    }
    for at in 0..text.len() {
        let wrong = if &text[at..=at] == "q" { "p" } else { "q" };
        let mut mistyped = text.clone();
        mistyped.replace_range(at..=at, wrong);
        assert!(mistyped.parse::<Token>().is_err());
    }
    assert_eq!(
        refusal(&text[..100]).to_string(),
        "the token is mistyped or cut off (100 characters): copy all of it, one word that begins with fltoken1"
    );
}

#[test]
fn another_key_is_not_taken_for_a_token() {
    assert_eq!(
        refusal(&hub(1).public().full()).to_string(),
        "this is no token: paste what `flatlan invite NAME` printed, one word that begins with fltoken1"
    );
    assert_eq!(refusal(" \n").to_string(), "the token is empty: paste what `flatlan invite NAME` printed");
}

#[test]
fn a_later_token_asks_for_an_upgrade() {
    use bech32::{Bech32m, Hrp};
    let text = bech32::encode::<Bech32m>(Hrp::parse("fltoken").unwrap(), &[0x82, 0x02, 0x00]).unwrap();
    assert!(matches!(refusal(&text), TokenError::Decode(DecodeError::Version { got: 2 })));
    let text = bech32::encode::<Bech32m>(Hrp::parse("fltoken").unwrap(), &[0x82, 0x01, 0x00]).unwrap();
    assert!(matches!(refusal(&text), TokenError::Decode(DecodeError::Cbor(_))));
}
