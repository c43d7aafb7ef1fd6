use super::*;

/// Everything in `bytes`, and what is left over.
fn pieces(unframer: &mut Unframer, bytes: &mut [u8]) -> Result<(Vec<Piece>, usize), FramingError> {
    let (mut all, mut at) = (Vec::new(), 0);
    while let Some(piece) = unframer.next(bytes, &mut at)? {
        all.push(piece);
    }
    Ok((all, at))
}

fn frame(side: Side, kind: Kind, payload: &[u8]) -> Vec<u8> {
    [Written::new(kind, payload.len(), side).bytes(), payload].concat()
}

#[test]
fn a_message_of_any_length_is_found_where_it_lies_and_not_before_it_is_all_there() {
    for (from, to) in [(Side::Client, Side::Server), (Side::Server, Side::Client)] {
        for length in [0, 1, 125, 126, 65_535, 65_536, 70_000] {
            let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let mut bytes = frame(from, Kind::Binary, &payload);
            let header = bytes.len() - length;
            let mut unframer = Unframer::new(to, 70_000);
            for cut in [0, 1, header.saturating_sub(1), bytes.len() - 1] {
                assert_eq!(pieces(&mut unframer, &mut bytes[..cut]), Ok((vec![], 0)));
            }
            let end = bytes.len();
            assert_eq!(pieces(&mut unframer, &mut bytes), Ok((vec![Piece::Message(header..end)], end)));
            assert_eq!(bytes[header..], payload);
        }
    }
}

#[test]
fn what_another_implementation_masks_is_unmasked() {
    // RFC 6455, section 5.7: a masked "Hello"; the kind is binary here
    let mut bytes = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    let (found, _) = pieces(&mut Unframer::new(Side::Server, 100), &mut bytes).unwrap();
    assert_eq!(found, [Piece::Message(6..11)]);
    assert_eq!(&bytes[6..], b"Hello");
}

#[test]
fn parts_are_put_together_and_pings_come_between_them() {
    let mut bytes = [&[0x02, 2][..], b"ab", &[0x89, 1], b"p", &[0x00, 0], &[0x8a, 0], &[0x80, 1], b"c"].concat();
    let (found, _) = pieces(&mut Unframer::new(Side::Client, 3), &mut bytes).unwrap();
    let nothing = || Piece::Nothing;
    let expected = [nothing(), Piece::Ping(6..7), nothing(), nothing(), Piece::Whole(b"abc".to_vec())];
    assert_eq!(found, expected);
}

#[test]
fn whatever_was_not_agreed_on_is_refused() {
    let refused = |bytes: &[u8]| pieces(&mut Unframer::new(Side::Client, 10), &mut bytes.to_vec()).unwrap_err();
    assert_eq!(refused(&[0xc2, 0]), FramingError::Reserved);
    assert_eq!(refused(&[0x83, 0]), FramingError::Reserved);
    assert_eq!(refused(&[0x82, 0x80, 0, 0, 0, 0]), FramingError::Mask);
    assert_eq!(refused(&[0x81, 1, 0]), FramingError::Text);
    assert_eq!(refused(&[0x09, 0]), FramingError::Control);
    assert_eq!(refused(&[0x89, 126, 0, 126]), FramingError::Control);
    assert_eq!(refused(&[0x80, 0]), FramingError::Order);
    assert_eq!(refused(&[0x02, 0, 0x82, 0]), FramingError::Order);
    let plain = pieces(&mut Unframer::new(Side::Server, 10), &mut [0x82, 1, 0]).unwrap_err();
    assert_eq!(plain, FramingError::Mask);
}

#[test]
fn a_length_beyond_the_longest_message_is_refused_before_it_comes() {
    let refused = |bytes: &[u8]| pieces(&mut Unframer::new(Side::Client, 10), &mut bytes.to_vec()).unwrap_err();
    assert_eq!(refused(&[0x82, 11]), FramingError::TooLong);
    assert_eq!(refused(&[0x82, 127, 255, 255, 255, 255, 255, 255, 255, 255]), FramingError::TooLong);
    // neither do parts add up to more
    assert_eq!(refused(&[0x02, 1, 0, 0x80, 10]), FramingError::TooLong);
}
