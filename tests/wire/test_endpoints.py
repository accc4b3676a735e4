"""Push, serve, reply, wait: over shared memory and over TCP."""

import pytest
import torch
from wire_world import PATIENT, SECRET, SHAPES, World, activations, address, routing

from step3.wire import (
    AttentionEndpoint,
    DeadlineError,
    Failed,
    FFNEndpoint,
    Format,
    Fp8,
    Gone,
    Joined,
    Late,
    NoSlotError,
    Peer,
    PeerGoneError,
    Role,
    Shapes,
    Timing,
    Unreachable,
    WireError,
    encode_fp8,
)


def test_a_call_arrives_and_its_answer_comes_back(world: World) -> None:
    attention, ffn = world.pair()
    x, (ids, weights) = activations(5), routing(5)
    (ticket,) = attention.push(attention.peers, 2, 3, x, ids, weights)
    group = world.group()
    assert (group.layer, group.tokens, [call.lane for call in group.calls]) == (3, 5, [2])
    assert torch.equal(group.x(torch.float32), x)
    assert group.expert_ids is not None
    assert torch.equal(group.expert_ids, ids)
    assert group.expert_weights is not None
    assert torch.equal(group.expert_weights, weights)
    ffn.reply(group, 2 * x)
    (answer,) = world.answers(attention, 1)
    assert answer.ticket is ticket
    assert torch.equal(answer.partial, 2 * x)


def test_a_layer_without_experts(world: World) -> None:
    attention, _ = world.pair()
    attention.push(attention.peers, 0, 0, activations(1))
    group = world.group()
    assert (group.expert_ids, group.expert_weights) == (None, None)


def test_the_peers_know_each_other(world: World) -> None:
    ffn, where = world.add_ffn(instance=7, epoch=4)
    attention = world.add_attention(where, instance=5, epoch=9)
    world.until(lambda: attention.peers and ffn.peers)
    seen = [(peer.role, peer.instance, peer.epoch) for peer in (*attention.peers, *ffn.peers)]
    assert seen == [(Role.FFN, 7, 4), (Role.ATTENTION, 5, 9)]
    assert [event.peer for event in world.told(ffn, Joined)] == list(ffn.peers)


def test_the_attention_side_may_listen(world: World) -> None:
    attention = world.add_attention()
    ffn, _ = world.add_ffn()
    ffn.connect(attention.listen(address(world.transport)))
    world.until(lambda: attention.peers and ffn.peers)
    attention.push(attention.peers, 0, 1, activations(16))
    ffn.reply(world.group(), activations(16, seed=1))
    assert torch.equal(world.answers(attention, 1)[0].partial, activations(16, seed=1))


@pytest.mark.parametrize("activation", list(Format))
@pytest.mark.parametrize("partial", [Format.FLOAT32, Format.BFLOAT16])
def test_each_format(world: World, activation: Format, partial: Format) -> None:
    attention, ffn = world.pair(activations=activation, partials=partial)
    x = activations(9)
    attention.push(attention.peers, 0, 1, x)
    group = world.group()
    assert group.calls[0].values.dtype == activation.dtype
    assert (group.calls[0].scales is not None) == (activation is Format.FP8)
    got = group.x(torch.float32)
    tolerance = {Format.FLOAT32: 0.0, Format.BFLOAT16: 2**-8, Format.FP8: 2**-4}[activation]
    torch.testing.assert_close(got, x, rtol=tolerance, atol=tolerance / 16)
    ffn.reply(group, got)
    answer = world.answers(attention, 1)[0]
    assert answer.partial.dtype == partial.dtype
    assert torch.equal(answer.partial, got.to(partial.dtype))


def test_activations_may_be_encoded_already(world: World) -> None:
    attention, _ = world.pair(activations=Format.FP8)
    x = activations(3)
    encoded = Fp8(torch.empty(3, 192, dtype=torch.float8_e4m3fn), torch.empty(3, 2))
    encode_fp8(x, encoded.values, encoded.scales)
    attention.push(attention.peers, 0, 1, encoded)
    attention.push(attention.peers, 0, 2, x)
    world.until(lambda: len(world.groups) == 2)
    assert torch.equal(*(group.x(torch.float32) for group in world.groups))


def test_encoded_activations_must_fit_the_endpoint(world: World) -> None:
    encoded = Fp8(torch.empty(3, 192, dtype=torch.float8_e4m3fn), torch.empty(3, 1))
    with pytest.raises(WireError, match="the endpoint sends float32"):
        world.add_attention().push([], 0, 1, encoded)
    with pytest.raises(WireError, match=r"scales of \[3, 1\] for values of \[3, 192\]"):
        world.add_attention(activations=Format.FP8).push([], 0, 1, encoded)


def test_an_answer_may_be_written_in_place(world: World) -> None:
    attention, ffn = world.pair()
    attention.push(attention.peers, 0, 1, activations(4))
    group = world.group()
    torch.mul(group.x(torch.float32), 3, out=group.calls[0].partial)
    ffn.reply(group)
    assert torch.equal(world.answers(attention, 1)[0].partial, 3 * activations(4))


def test_calls_of_one_layer_from_all_attention_instances_are_merged(world: World) -> None:
    ffn, where = world.add_ffn()
    both = [world.add_attention(where, instance=instance) for instance in range(2)]
    world.until(lambda: len(ffn.peers) == 2 and all(one.peers for one in both))
    world.serving = False
    for seed, attention in enumerate(both):
        attention.push(attention.peers, 0, 2, activations(3 + seed, seed), *routing(3 + seed, seed))
        attention.push(attention.peers, 1, 3, activations(1, 5), *routing(1, 5))
    world.until(lambda: ffn.waiting == 4)
    ffn.events()
    for _ in range(2):
        group = ffn.serve(0.0)
        assert group is not None
        assert len(group.calls) == 2
        ffn.reply(group, group.x(torch.float32) * 2)
    assert ffn.waiting == 0
    for seed, attention in enumerate(both):
        answers = {answer.ticket.lane: answer.partial for answer in world.answers(attention, 2)}
        assert torch.equal(answers[0], 2 * activations(3 + seed, seed))
        assert torch.equal(answers[1], 2 * activations(1, 5))


def test_a_group_is_as_large_as_is_allowed_and_the_oldest_comes_first(world: World) -> None:
    attention, ffn = world.pair()
    world.serving = False
    for lane, tokens in enumerate((5, 6, 7)):
        attention.push(attention.peers, lane, 1, activations(tokens, lane))
    world.until(lambda: ffn.waiting == 3)
    ffn.events()
    first, second = ffn.serve(0.0, max_tokens=11), ffn.serve(0.0, max_tokens=1)
    assert first is not None
    assert second is not None
    assert [call.lane for call in first.calls] == [0, 1]
    assert [call.lane for call in second.calls] == [2]
    assert torch.equal(first.x(torch.float32), torch.cat([activations(5, 0), activations(6, 1)]))


def test_one_push_goes_to_every_shard(world: World) -> None:
    pairs = [world.add_ffn(instance) for instance in range(3)]
    attention = world.add_attention(*(where for _, where in pairs), activations=Format.FP8)
    world.until(lambda: len(attention.peers) == 3)
    x, route = activations(7), routing(7)
    tickets = attention.push(attention.peers, 1, 2, x, *route)
    assert len({ticket.call for ticket in tickets}) == 1
    world.until(lambda: len(world.groups) == 3)
    for group in world.groups:
        assert torch.equal(group.x(torch.float32), world.groups[0].x(torch.float32))
        assert group.expert_ids is not None
        assert torch.equal(group.expert_ids, route[0])


def test_x_may_be_changed_after_push(world: World) -> None:
    attention, _ = world.pair()
    x = activations(16)
    attention.push(attention.peers, 0, 1, x)
    x.zero_()
    assert torch.equal(world.group().x(torch.float32), activations(16))


def test_slots_are_counted_and_come_back(world: World) -> None:
    attention, ffn = world.pair()
    for lane in range(SHAPES.slots):
        attention.push(attention.peers, lane, 1, activations(1))
    with pytest.raises(NoSlotError, match="all slots of ffn instance 0"):
        attention.push(attention.peers, 3, 1, activations(1))
    world.until(lambda: sum(len(group.calls) for group in world.groups) == 3)
    for group in world.groups:
        ffn.reply(group, group.x(torch.float32))
    answers = world.answers(attention, 3)
    assert attention.slots_free(attention.peers[0]) == 0, "an answer that is being read keeps its slot"
    for answer in answers:
        answer.release()
        answer.release()
    assert attention.slots_free(attention.peers[0]) == 3
    attention.push(attention.peers, 3, 1, activations(1))


def test_a_peer_is_named_once(world: World) -> None:
    attention, _ = world.pair()
    with pytest.raises(WireError, match="pushed to a peer once"):
        attention.push([*attention.peers, *attention.peers], 0, 1, activations(1))


def test_a_call_that_cannot_be_written_keeps_no_slot(world: World) -> None:
    attention, _ = world.pair()
    with pytest.raises(RuntimeError):
        attention.push(attention.peers, 0, 1, activations(1).to("meta"))
    assert attention.slots_free(attention.peers[0]) == SHAPES.slots


def test_a_hundred_calls_in_turn_each_get_their_own_answer(world: World) -> None:
    attention, ffn = world.pair(activations=Format.BFLOAT16)
    for number in range(100):
        x = activations(1 + number % 16, number).bfloat16().float()
        attention.push(attention.peers, 0, number % 4, x)
        group = world.group(number + 1)
        ffn.reply(group, group.x(torch.float32) + number)
        answer = world.answers(attention, number + 1)[number]
        assert torch.equal(answer.partial, x + number)
        answer.release()


def test_a_second_reply_to_a_group_is_dropped(world: World) -> None:
    attention, ffn = world.pair()
    attention.push(attention.peers, 0, 1, activations(2))
    ffn.reply(world.group(), activations(2))
    ffn.reply(world.group(), activations(2, 1))
    world.answers(attention, 1)[0].release()
    attention.push(attention.peers, 0, 1, activations(2))
    ffn.fail(world.group(), "too late")
    ffn.reply(world.group(2), activations(2, 2))
    assert torch.equal(world.answers(attention, 2)[1].partial, activations(2, 2))


def test_a_failure_is_told_with_its_reason(world: World) -> None:
    attention, ffn = world.pair()
    (ticket,) = attention.push(attention.peers, 0, 1, activations(1))
    ffn.fail(world.group(), "out of memory " + "x" * 5000)
    world.until(lambda: world.told(attention, Failed))
    (failed,) = world.told(attention, Failed)
    assert failed.ticket is ticket
    assert failed.message.startswith("out of memory x")
    assert attention.slots_free(ticket.peer) == SHAPES.slots


def test_a_late_answer_is_told_once_and_still_comes(world: World) -> None:
    attention, ffn = world.pair()
    (ticket,) = attention.push(attention.peers, 0, 1, activations(1), timeout=0.01)
    world.until(lambda: world.told(attention, Late))
    ffn.reply(world.group(), activations(1))
    assert world.answers(attention, 1)[0].ticket is ticket
    assert len(world.told(attention, Late)) == 1


def test_the_answer_to_a_forgotten_call_is_dropped(world: World) -> None:
    attention, ffn = world.pair()
    (ticket,) = attention.push(attention.peers, 0, 1, activations(1))
    attention.forget(ticket)
    ffn.reply(world.group(), activations(1))
    world.until(lambda: attention.slots_free(ticket.peer) == SHAPES.slots)
    assert not [event for event in world.events[attention] if not isinstance(event, Joined)]


def test_a_goodbye_is_told_with_what_it_left_unanswered(world: World) -> None:
    attention, ffn = world.pair()
    (ticket,) = attention.push(attention.peers, 0, 1, activations(1))
    world.group()
    world.ffn.remove(ffn)
    ffn.close()
    world.until(lambda: world.told(attention, Gone))
    (gone,) = world.told(attention, Gone)
    assert gone.graceful
    assert gone.lost == (ticket,)
    assert attention.peers == ()
    with pytest.raises(PeerGoneError, match=r"ffn instance 0 .* is gone"):
        attention.push([ticket.peer], 0, 1, activations(1))


def test_calls_of_a_peer_that_is_gone_are_not_served_and_its_answers_dropped(world: World) -> None:
    attention, ffn = world.pair()
    attention.push(attention.peers, 0, 1, activations(1))
    group = world.group()
    world.serving = False
    attention.push(attention.peers, 1, 2, activations(1))
    world.until(lambda: ffn.waiting == 1)
    world.attention.remove(attention)
    attention.close()
    world.until(lambda: world.told(ffn, Gone))
    assert ffn.serve(0.0) is None
    ffn.reply(group, activations(1))


def test_a_connection_of_the_same_instance_takes_the_place_of_the_old_one(world: World) -> None:
    ffn, where = world.add_ffn()
    first = world.add_attention(where, epoch=1)
    world.until(lambda: ffn.peers)
    second = world.add_attention(where, epoch=2)
    world.until(lambda: second.peers and world.told(first, Gone))
    assert [peer.epoch for peer in ffn.peers] == [2]
    assert not world.told(ffn, Gone)[0].graceful


def test_an_older_epoch_is_refused(world: World) -> None:
    ffn, where = world.add_ffn()
    newer = world.add_attention(where, epoch=2)
    world.until(lambda: newer.peers and ffn.peers)
    older = world.add_attention(where, epoch=1)
    world.until(lambda: world.told(older, Gone))
    assert "older epoch than 2" in world.told(older, Gone)[0].reason
    assert [peer.epoch for peer in ffn.peers] == [2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 256}, "different models: the attention side has hidden 256, the FFN side 192"),
        ({"layers": 5}, "layers 5"),
        ({"experts": 9}, "experts 9"),
        ({"max_tokens": 17}, "asks for max_tokens 17, the FFN side allows 16"),
        ({"slots": 4}, "asks for slots 4, the FFN side allows 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(
    world: World, change: dict[str, int], message: str
) -> None:
    sizes = {"hidden": 192, "max_tokens": 16, "layers": 4, "experts": 8, "top_k": 2, "slots": 3} | change
    _, where = world.add_ffn()
    attention = world.add_attention(where, shapes=Shapes(**sizes))
    world.until(lambda: world.told(attention, Unreachable))
    assert message in world.told(attention, Unreachable)[0].reason


def test_two_of_a_kind_have_nothing_to_say(world: World) -> None:
    _, where = world.add_ffn()
    other, _ = world.add_ffn(1)
    other.connect(where)
    world.until(lambda: world.told(other, Unreachable))
    assert "two ffn instances" in world.told(other, Unreachable)[0].reason


def test_nobody_there_is_told(world: World) -> None:
    attention = world.add_attention("tcp://127.0.0.1:1" if world.transport == "tcp" else "shm://nobody")
    world.until(lambda: world.told(attention, Unreachable))
    assert "refused" in world.told(attention, Unreachable)[0].reason


def test_waiting_for_peers_has_a_deadline_and_a_reason() -> None:
    with AttentionEndpoint(0, SHAPES, SECRET, timing=PATIENT) as attention:
        with pytest.raises(DeadlineError, match="0 of 1 peers"):
            attention.wait_for_peers(1, 0.01)
        attention.connect("shm://nobody")
        with pytest.raises(WireError, match="cannot reach shm://nobody"):
            attention.wait_for_peers(1, 10.0)


def test_wake_ends_a_wait() -> None:
    with AttentionEndpoint(0, SHAPES, SECRET, timing=PATIENT) as attention:
        attention.wake()
        assert attention.wait() == []


def test_waking_a_closed_endpoint_does_nothing() -> None:
    endpoint = FFNEndpoint(0, SHAPES, SECRET, timing=PATIENT)
    endpoint.close()
    endpoint.wake()


def test_a_spinning_endpoint_is_served_too(world: World) -> None:
    attention, ffn = world.pair(spin=0.001)
    attention.push(attention.peers, 0, 1, activations(2))
    ffn.reply(world.group(), activations(2))
    assert torch.equal(world.answers(attention, 1)[0].partial, activations(2))


def test_times_stand_in_order(world: World) -> None:
    attention, ffn = world.pair()
    attention.push(attention.peers, 0, 1, activations(2))
    ffn.reply(world.group(), activations(2))
    times = world.answers(attention, 1)[0].times
    stamps = [times.pushed_ns, times.arrived_ns, times.started_ns, times.finished_ns, times.answered_ns]
    assert stamps == sorted(stamps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((0, 1, torch.zeros(17, 192)), r"x must be \[1 to 16 tokens, 192\], not \[17, 192\]"),
        ((0, 1, torch.zeros(0, 192)), "x must be"),
        ((0, 1, torch.zeros(2, 191)), "x must be"),
        ((0, 4, torch.zeros(2, 192)), "layer 4 is not among the 4"),
        ((1 << 16, 0, torch.zeros(2, 192)), "lane 65536"),
        ((0, 1, torch.zeros(2, 192), torch.zeros(2, 2)), "come together"),
        (
            (0, 1, torch.zeros(2, 192), torch.zeros(2, 3), torch.zeros(2, 3)),
            r"expert_ids must be \[2, 2\], not \[2, 3\]",
        ),
    ],
)
def test_a_call_that_does_not_fit_is_an_error(call: tuple, message: str) -> None:
    with AttentionEndpoint(0, SHAPES, SECRET, timing=PATIENT) as attention:
        nobody: list[Peer] = []
        with pytest.raises(WireError, match=message):
            attention.push(nobody, *call)


def test_a_partial_sum_of_another_shape_is_an_error(world: World) -> None:
    attention, ffn = world.pair()
    attention.push(attention.peers, 0, 1, activations(2))
    with pytest.raises(WireError, match=r"must be \[2, 192\], not \[3, 192\]"):
        ffn.reply(world.group(), activations(3))


@pytest.mark.parametrize("written", ["", "host:80", "tcp://host", "tcp://host:99999", "shm://", "shm://a/b"])
def test_an_address_that_cannot_be_read_is_an_error(written: str) -> None:
    with AttentionEndpoint(0, SHAPES, SECRET, timing=PATIENT) as attention:
        with pytest.raises(WireError, match="is no address"):
            attention.connect(written)
        with pytest.raises(WireError, match="is no address"):
            attention.listen(written)


def test_an_address_in_use_is_an_error(world: World) -> None:
    _, where = world.add_ffn()
    other, _ = world.add_ffn(1)
    with pytest.raises(WireError, match="in use"):
        other.listen(where)


def test_options_that_make_no_sense_are_errors() -> None:
    with pytest.raises(WireError, match="at least 16 bytes"):
        FFNEndpoint(0, SHAPES, b"short")
    with pytest.raises(WireError, match="instance must be from 0"):
        FFNEndpoint(-1, SHAPES, SECRET)
    with pytest.raises(WireError, match="not as fp8"):
        AttentionEndpoint(0, SHAPES, SECRET, partials=Format.FP8)
    with pytest.raises(WireError, match="longer than"):
        Timing(heartbeat=1.0, silence=0.5)
    with pytest.raises(WireError, match="hidden must be a whole number"):
        Shapes(hidden=0, max_tokens=1, layers=1)
    with pytest.raises(WireError, match="top_k of 3 is over"):
        Shapes(hidden=1, max_tokens=1, layers=1, experts=2, top_k=3)
