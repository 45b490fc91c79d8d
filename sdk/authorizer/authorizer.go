// Package authorizer says what an authorizer's answers mean and what they must look like. The core decides by the same
// words; here an author can try out rules before.
//
// The conformance kit is sdk/authorizer/authorizertest.
package authorizer

import (
	"fmt"
	"strings"

	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
)

// MaxObjects is how many objects the contract allows in one Authorize.
const MaxObjects = 10_000

// Decide applies an approver to an object as the core does. asks says that the approver leaves it to Authorize.
func Decide(r *authorizerv1.ApproverResponse, o *authorizerv1.Object) (allowed, asks bool) {
	switch d := r.GetDecision().(type) {
	case *authorizerv1.ApproverResponse_AllowAll:
		return true, false
	case *authorizerv1.ApproverResponse_Rules:
		for _, rule := range d.Rules.GetRules() {
			if matches(rule, o) {
				return rule.GetAllow(), false
			}
		}
		return d.Rules.GetOtherwiseAllow(), false
	case *authorizerv1.ApproverResponse_Ask:
		return false, true
	}
	return false, false
}

// matches says whether a rule is about an object. "a/%" is about every descendant of a, and not about a.
func matches(rule *authorizerv1.Rule, o *authorizerv1.Object) bool {
	if rule.GetMatch() == authorizerv1.Rule_ANY {
		return true
	}
	if rule.GetMatch() != authorizerv1.Rule_VALUES || o == nil || o.Value == nil {
		return false
	}
	for _, v := range rule.GetValues() {
		if parent, below := strings.CutSuffix(v, "/%"); below {
			if strings.HasPrefix(o.GetValue(), parent+"/") {
				return true
			}
		} else if v == o.GetValue() {
			return true
		}
	}
	return false
}

// CheckApprover says what is wrong with an approver, each problem one line; nil if nothing is.
func CheckApprover(r *authorizerv1.ApproverResponse) []string {
	if r.GetDecision() == nil {
		return []string{"it has no decision"}
	}
	var wrong []string
	for i, rule := range r.GetRules().GetRules() {
		switch rule.GetMatch() {
		case authorizerv1.Rule_ANY:
			if i < len(r.GetRules().GetRules())-1 {
				wrong = append(wrong, fmt.Sprintf("rules[%d] matches everything, so that those after it never decide", i))
			}
		case authorizerv1.Rule_VALUES:
			if len(rule.GetValues()) == 0 {
				wrong = append(wrong, fmt.Sprintf("rules[%d] matches no value at all", i))
			}
		default:
			wrong = append(wrong, fmt.Sprintf("rules[%d].match is %d, want ANY or VALUES", i, rule.GetMatch()))
		}
	}
	return wrong
}

// Actions are those of Mesos that the core asks for.
func Actions() []string {
	return []string{
		"REGISTER_FRAMEWORK", "RUN_TASK", "TEARDOWN_FRAMEWORK", "RESERVE_RESOURCES", "UNRESERVE_RESOURCES", "CREATE_VOLUME",
		"DESTROY_VOLUME", "RESIZE_VOLUME", "CREATE_BLOCK_DISK", "DESTROY_BLOCK_DISK", "CREATE_MOUNT_DISK", "DESTROY_MOUNT_DISK",
		"DESTROY_RAW_DISK", "GET_ENDPOINT_WITH_PATH", "VIEW_ROLE", "UPDATE_WEIGHT", "GET_QUOTA", "UPDATE_QUOTA", "VIEW_FRAMEWORK",
		"VIEW_TASK", "VIEW_EXECUTOR", "ACCESS_SANDBOX", "VIEW_CONTAINER", "KILL_NESTED_CONTAINER", "WAIT_NESTED_CONTAINER",
		"REMOVE_NESTED_CONTAINER", "ATTACH_CONTAINER_INPUT", "ATTACH_CONTAINER_OUTPUT", "LAUNCH_NESTED_CONTAINER",
		"LAUNCH_NESTED_CONTAINER_SESSION", "LAUNCH_STANDALONE_CONTAINER", "KILL_STANDALONE_CONTAINER",
		"WAIT_STANDALONE_CONTAINER", "REMOVE_STANDALONE_CONTAINER", "VIEW_STANDALONE_CONTAINER", "ACCESS_MESOS_LOG",
		"VIEW_FLAGS", "SET_LOG_LEVEL", "REGISTER_AGENT", "UPDATE_MAINTENANCE_SCHEDULE", "GET_MAINTENANCE_SCHEDULE",
		"START_MAINTENANCE", "STOP_MAINTENANCE", "GET_MAINTENANCE_STATUS", "MARK_AGENT_GONE",
	}
}
