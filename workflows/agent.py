"""Any agent that speaks to OpenAI's or Anthropic's API, trained as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from arealite.agents.endpoint import Endpoint
from arealite.agents.running import run_agent
from arealite.agents.session import Sampling, Session
from arealite.errors import Unscorable
from arealite.loading import load_agent
from arealite.types import GenerationHyperparameters, Trajectory


class AgentWorkflow:
    """Runs an agent gconfig.n_samples times for each row, in front of an endpoint that answers with
    the policy (docs/agents.md).

    agent: `pkg.mod:function` or `path/file.py:function`, called as run(data, base_url, api_key);
    what it returns is its reward (Session.trajectories), for which turn_discount counts where it
    rewards single completions. context_length: the most tokens of a conversation. sampling:
    whether an agent's own temperature, top_p and seed are refused or ignored. template_kwargs: for
    the tokenizer's chat template. A run that raises Unscorable is left out of its group; any other
    failure of a run fails the episode.
    """

    def __init__(
        self,
        gconfig: GenerationHyperparameters,
        tokenizer: Any,
        agent: str,
        turn_discount: float = 1.0,
        context_length: int | None = None,
        sampling: Sampling = "refuse",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 <= turn_discount <= 1 or sampling not in ("refuse", "ignore"):
            raise ValueError(
                f"turn_discount is {turn_discount} and sampling {sampling!r}; they must be between "
                "0 and 1, and refuse or ignore"
            )
        self.agent, self.tokenizer = load_agent(agent), tokenizer
        self.gconfig = gconfig.new_with_stop_and_pad_token_ids(tokenizer)
        self.turn_discount, self.context_length = turn_discount, context_length
        self.sampling, self.template_kwargs = sampling, template_kwargs
        self.endpoint, self._starts = Endpoint(), asyncio.Lock()

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
        await self.endpoint.start()
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(self._play(engine, data)) for _ in range(self.gconfig.n_samples)
            ]
        played = [task.result() for task in running]
        # A sample without a score is left out, and so out of the others' baseline.
        scored = [one for one in played if not isinstance(one, Unscorable)]
        if len(scored) < min(2, len(played)):
            raise next(one for one in played if isinstance(one, Unscorable))
        return [trajectory for trajectories in scored for trajectory in trajectories]

    async def _play(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory] | Unscorable:
        """One run. An engine's failure is the episode's, whatever the agent makes of it."""
        session = Session(
            engine,
            self.tokenizer,
            self.gconfig,
            self.context_length,
            self.sampling,
            self.template_kwargs,
        )
        async with (
            self._starts
        ):  # one in each turn of the event loop: a client may take long to make
            await asyncio.sleep(0)
        try:
            with self.endpoint.opened(session) as key:
                earned = await run_agent(
                    self.agent, dict(data), base_url=self.endpoint.url, api_key=key
                )
        except Unscorable as unscorable:
            if session.error is None:
                return unscorable
        except Exception:
            if session.error is None:
                raise
        if session.error is not None:
            raise session.error
        return session.trajectories(earned, self.turn_discount)

    async def aclose(self) -> None:
        """Ends the endpoint."""
        await self.endpoint.aclose()
