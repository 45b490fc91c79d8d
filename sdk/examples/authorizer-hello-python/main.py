#!/usr/bin/env python3
"""The smallest authorizer that decides something, in Python: everybody may look, administrators may do everything."""

import os
import sys

# A host executes the very file that it has checked, through a descriptor: where it lies stands in the environment.
sys.path.insert(0, os.path.dirname(os.environ.get("MOSAIC_MODULE_FILE") or os.path.abspath(__file__)))

from mosaic_module import Module, message, serve


class Authorizer(Module):
    kind = "authorizer"
    name = "hello"
    version = "1.0.0"
    doc = "lets everybody look and administrators do everything"
    attributes = {"administrators": ("STRING_LIST", [], "Principals who may do everything.")}

    def allowed(self, subject, action):
        """The whole policy."""
        looks = action.startswith(("VIEW_", "GET_"))
        return looks or subject.value != "" and subject.value in self.config["administrators"]

    def approver(self, request, context):
        """Says how to decide for a principal and an action; the host keeps the answer and asks no more."""
        answer = message("mosaic.authorizer.v1.ApproverResponse")()
        if self.allowed(request.subject, request.action):
            answer.allow_all.SetInParent()
        else:
            answer.deny_all.SetInParent()
        return answer

    def authorize(self, request, context):
        """Decides for each object, in order."""
        allowed = self.allowed(request.subject, request.action)
        return message("mosaic.authorizer.v1.AuthorizeResponse")(allowed=[allowed] * len(request.objects))


if __name__ == "__main__":
    serve(Authorizer())
