package api

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// Validation here is of a call's own form: what can be told without knowing the cluster. The errors are
// sentences for the client.

// expectField says that call must have its type, and the message that belongs to it: by the naming of
// the whole API, the field called as the type in lower case. optional lists the types that do without.
func expectField(call codec.Message, optional ...protoreflect.Name) error {
	m := call.ProtoReflect()
	fields := m.Descriptor().Fields()
	typeField := fields.ByName("type")
	if !m.Has(typeField) {
		return errors.New("Expecting 'type' to be present")
	}
	value := typeField.Enum().Values().ByNumber(m.Get(typeField).Enum())
	if value == nil {
		return errors.New("Expecting 'type' to be present")
	}
	name := protoreflect.Name(strings.ToLower(string(value.Name())))
	f := fields.ByName(name)
	if f == nil || m.Has(f) {
		return nil
	}
	for _, o := range optional {
		if o == name {
			return nil
		}
	}
	return fmt.Errorf("Expecting '%s' to be present", name)
}

func validateSchedulerCall(call *schedulerv1.Call) error {
	if call.Type == nil {
		return expectField(call)
	}
	if call.GetType() != schedulerv1.Call_SUBSCRIBE && call.FrameworkId == nil {
		return errors.New("Expecting 'framework_id' to be present")
	}
	// REVIVE and SUPPRESS without roles are for all of them.
	if err := expectField(call, "revive", "suppress"); err != nil {
		return err
	}
	switch call.GetType() {
	case schedulerv1.Call_SUBSCRIBE:
		if call.GetSubscribe().GetFrameworkInfo().GetId().GetValue() != call.GetFrameworkId().GetValue() {
			return errors.New("'framework_id' differs from 'subscribe.framework_info.id'")
		}
	case schedulerv1.Call_UPDATE_FRAMEWORK:
		if call.GetUpdateFramework().GetFrameworkInfo().GetId().GetValue() != call.GetFrameworkId().GetValue() {
			return errors.New("'framework_id' differs from 'update_framework.framework_info.id'")
		}
	case schedulerv1.Call_ACKNOWLEDGE:
		return validateUUID(call.GetAcknowledge().GetUuid())
	case schedulerv1.Call_ACKNOWLEDGE_OPERATION_STATUS:
		a := call.GetAcknowledgeOperationStatus()
		if err := validateUUID(a.GetUuid()); err != nil {
			return err
		}
		if a.AgentId == nil {
			return errors.New("Expecting 'agent_id' to be present")
		}
	}
	return nil
}

// validateUUID holds b to be a UUID of the RFC's variant and one of its versions, not only 16 bytes.
func validateUUID(b []byte) error {
	if len(b) != 16 {
		return fmt.Errorf("Not a valid UUID: got %d bytes, want 16", len(b))
	}
	if version := b[6] >> 4; version < 1 || version > 8 || b[8]>>6 != 0b10 {
		return errors.New("Not a valid UUID: unknown version or variant")
	}
	return nil
}

func validateExecutorCall(call *executorv1.Call) error {
	if err := expectField(call); err != nil {
		return err
	}
	if call.GetType() != executorv1.Call_UPDATE {
		return nil
	}
	status := call.GetUpdate().GetStatus()
	executor := call.GetExecutorId().GetValue()
	switch {
	case status.Uuid == nil:
		return errors.New("Expecting 'uuid' to be present")
	case status.ExecutorId != nil && status.GetExecutorId().GetValue() != executor:
		return fmt.Errorf("ExecutorID in Call: %s does not match ExecutorID in TaskStatus: %s",
			clip(executor), clip(status.GetExecutorId().GetValue()))
	case status.GetSource() != mesosv1.TaskStatus_SOURCE_EXECUTOR || status.Source == nil:
		return fmt.Errorf("Received Call from executor %s with invalid source, expecting 'SOURCE_EXECUTOR'", clip(executor))
	case status.GetState() == mesosv1.TaskState_TASK_STAGING:
		return fmt.Errorf("Received TASK_STAGING from executor %s which is not allowed", clip(executor))
	}
	return validateUUID(status.GetUuid())
}

func validateMasterCall(call *masterv1.Call) error {
	if err := expectField(call); err != nil {
		return err
	}
	switch call.GetType() {
	case masterv1.Call_GROW_VOLUME:
		if call.GetGrowVolume().AgentId == nil {
			return errors.New("Expecting 'grow_volume.agent_id' to be present")
		}
	case masterv1.Call_SHRINK_VOLUME:
		if call.GetShrinkVolume().AgentId == nil {
			return errors.New("Expecting 'shrink_volume.agent_id' to be present")
		}
	}
	return nil
}
