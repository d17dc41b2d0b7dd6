"""A task that needs memory, learned from reward: a cue at the start, a junction at the end.

    python examples/rollouts.py    # half a minute on one CPU thread; draws rollouts.png

A corridor of 4 to 12 places ends in a junction. At the first place, and only there, a sign says
which way to turn at the end. The agent is moved along; what it decides at the junction is paid 1 or
-1, and ends the episode. Whoever forgets the sign gets 0 in the mean, whatever he does.

Sixty-four corridors are walked at once, and their episodes end at different steps. The agent acts
through `fastrnn.Stepper`, a step at a time, in which rows that begin an episode are reset. Then it
learns (advantage actor-critic) from one call over all steps, to which `resets=` says the same. The
agent without a memory is the same network, reset at every step.

Source of the task: B. Bakker, Reinforcement learning with long short-term memory, NIPS 2001.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import gallery
import torch
from torch import Tensor, nn

import fastrnn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ACTIONS = 2
"""Left and right."""
INPUTS = 3
"""Of the agent: the sign (-1 left, 1 right, 0 none), corridor, junction."""
SHORTEST, LONGEST = 4, 12
"""Places of a corridor."""
DISCOUNT, TRACE = 0.98, 0.95
"""gamma, and lambda of generalised advantages."""


class Corridors:
    """B environments side by side; each begins its next episode where the last one has ended."""

    def __init__(self, batch: int, rng: torch.Generator) -> None:
        self.batch, self.rng = batch, rng
        self.place = self.length = self.right = torch.zeros(batch, dtype=torch.int64)
        self.begin(torch.ones(batch, dtype=torch.bool))

    def begin(self, rows: Tensor) -> None:
        """Put these rows at the start of a new corridor."""
        length = torch.randint(SHORTEST, LONGEST + 1, (self.batch,), generator=self.rng)
        right = torch.randint(ACTIONS, (self.batch,), generator=self.rng)
        self.place = self.place.masked_fill(rows, 0)
        self.length = torch.where(rows, length, self.length)
        self.right = torch.where(rows, right, self.right)

    def observe(self) -> Tensor:
        """(B, 3), what the agents see."""
        sign, junction = (2 * self.right - 1) * (self.place == 0), self.place == self.length - 1
        return torch.stack([sign, ~junction, junction], 1).float()

    def act(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (B,), and which episodes (B,) that ended; those begin anew."""
        done = self.place == self.length - 1
        reward = torch.where(action == self.right, 1.0, -1.0) * done
        self.place = self.place + 1
        self.begin(done)
        return reward, done


class Agent(nn.Module):
    """An LSTM, over it the scores of actions and the value of the state."""

    def __init__(self, hidden_size: int, *, memory: bool) -> None:
        super().__init__()
        self.memory = memory
        self.lstm = fastrnn.LSTM(INPUTS, hidden_size)
        self.head = nn.Linear(hidden_size, ACTIONS + 1)

    def forward(self, seen: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (T, B, 2) and values (T, B) for what was seen, (T, B, I), in a single call."""
        output, _ = self.lstm(seen, resets=first if self.memory else torch.ones_like(first))
        scores, value = self.head(output).split([ACTIONS, 1], -1)
        return scores, value.squeeze(-1)


class Rollout(NamedTuple):
    """T steps of B environments; every row of it begins with an episode."""

    seen: Tensor
    """(T, B, I)"""
    first: Tensor
    """(T, B) bool: where episodes begin."""
    actions: Tensor
    """(T, B)"""
    rewards: Tensor
    """(T, B)"""
    scores: Tensor
    """(T, B, 2), as they were when the agent acted."""
    done: Tensor
    """(T, B) bool: where they end."""


@torch.no_grad()
def walk(agent: Agent, stepper: fastrnn.Stepper, steps: int, worlds: Corridors) -> Rollout:
    """Act for some steps, from new episodes on."""
    device = agent.head.weight.device
    stepper.refresh()  # the weights have learned since
    first = torch.ones(worlds.batch, dtype=torch.bool)
    worlds.begin(first)
    made = []
    for _ in range(steps):
        stepper.reset(first if agent.memory else None)
        seen = worlds.observe()
        scores = agent.head(stepper(seen.to(device)))[:, :ACTIONS].cpu()
        action = torch.multinomial(scores.softmax(1), 1, generator=worlds.rng).squeeze(1)
        reward, done = worlds.act(action)
        made.append((seen, first, action, reward, scores, done))
        first = done
    return Rollout(*(torch.stack(parts).to(device) for parts in zip(*made, strict=True)))


def advantages(value: Tensor, rewards: Tensor, done: Tensor) -> Tensor:
    """(T, B), backwards in time; what follows the last step counts as its own value says."""
    found, trace = torch.empty_like(value), torch.zeros_like(value[0])
    after = value[-1]
    for t in reversed(range(len(value))):
        going_on = (~done[t]).float()
        surprise = rewards[t] + DISCOUNT * going_on * after - value[t]
        trace = found[t] = surprise + DISCOUNT * TRACE * going_on * trace
        after = value[t]
    return found


def learn(agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout) -> float:
    """One step of Adam; returns by how much scores differ from those that the agent acted on."""
    scores, value = agent(rollout.seen, rollout.first)
    apart: float = (scores.detach() - rollout.scores).abs().max().item()
    gain = advantages(value.detach(), rollout.rewards, rollout.done)
    chances = scores.log_softmax(-1)
    taken = chances.gather(-1, rollout.actions.unsqueeze(-1)).squeeze(-1)
    actor = -(taken * (gain - gain.mean()) / (gain.std() + 1e-6)).mean()
    critic = (value - (gain + value.detach())).square().mean()
    entropy = -(chances.exp() * chances).sum(-1).mean()
    optimizer.zero_grad()
    (actor + 0.5 * critic - 0.01 * entropy).backward()
    nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
    optimizer.step()
    return apart


def train(agent: Agent, args: Any) -> tuple[list[float], float]:
    """Returns the mean return of the episodes of every update, and the largest difference."""
    worlds = Corridors(args.batch, torch.Generator().manual_seed(args.seed))
    stepper = fastrnn.Stepper(agent.lstm, args.batch)
    optimizer = torch.optim.Adam(agent.parameters(), 5e-3)
    returns, most = [], 0.0
    for _ in range(args.steps):
        rollout = walk(agent, stepper, args.length, worlds)
        returns.append((rollout.rewards.sum() / rollout.done.sum()).item())
        most = max(most, learn(agent, optimizer, rollout))
    return returns, most


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """Returns over updates."""
    figure, axes = gallery.picture(3.8)
    for name, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), curve, label=name)
    for level, name in ((0, "half of them right"), (1, "always right")):
        axes.axhline(level, color="black", lw=1, ls=":")
        axes.text(len(curve), level + (0.02 if level else -0.27), name, ha="right", va="bottom")
    axes.set(xlabel="updates", ylabel="mean return of an episode", ylim=(-0.35, 1.15))
    axes.set_title("Turning where the sign at the start said: with and without a memory")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.7), frameon=False)
    gallery.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Train both agents, print and draw; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=250)
    made.add_argument("--batch", type=gallery.integer(1), default=64, help="environments")
    made.add_argument("--length", type=gallery.integer(LONGEST), default=48, help="steps an update")
    made.add_argument("--hidden", type=gallery.integer(1), default=32, help="units of the LSTM")
    args = gallery.parse(made, argv)
    curves = {}
    for name, memory in (("LSTM", True), ("the same, reset at every step", False)):
        began = time.perf_counter()
        agent = Agent(args.hidden, memory=memory).to(args.device)
        curves[name], apart = train(agent, args)
        last = curves[name][-max(args.steps // 10, 1) :]
        print(
            f"{name}: return {curves[name][0]:.2f} at first, {sum(last) / len(last):.2f} in the "
            f"last tenth; acting and learning see scores at most {apart:.0e} apart; "
            f"{time.perf_counter() - began:.0f} s"
        )
    draw(curves, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
