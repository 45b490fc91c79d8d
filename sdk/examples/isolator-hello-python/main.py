#!/usr/bin/env python3
"""The smallest isolator that does something, in Python: it adds a greeting to each container's environment."""

import os
import sys

# A host executes the very file that it has checked, through a descriptor: where it lies stands in the environment.
sys.path.insert(0, os.path.dirname(os.environ.get("MOSAIC_MODULE_FILE") or os.path.abspath(__file__)))

from mosaic_module import Module, message, serve


class Hello(Module):
    kind = "isolator"
    name = "hello"
    version = "1.0.0"
    doc = "greets each container by its environment"
    powers = ["environment"]
    nesting = True
    standalone = True
    attributes = {"greeting": ("STRING", "world", "Value of the variable HELLO.")}

    def recover(self, pages, context):
        """Is told what lives. This module remembers nothing, so it only listens to the end."""
        for _ in pages:
            pass
        return message("mosaic.isolator.v1.RecoverResponse")()

    def prepare(self, request, context):
        """Proposes what the container shall get; the agent applies it."""
        answer = message("mosaic.isolator.v1.PrepareResponse")()
        answer.proposal.environment["HELLO"] = self.config["greeting"]
        return answer

    def cleanup(self, request, context):
        """Takes back what prepare did to the machine, which is nothing."""
        return message("mosaic.isolator.v1.CleanupResponse")()


if __name__ == "__main__":
    serve(Hello())
