package api

import (
	"errors"
	"fmt"
	"strings"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// The form of calls to the agent's operator API.

func validateAgentCall(call *agentv1.Call) error {
	if err := expectField(call, "get_containers", "prune_images"); err != nil {
		return err
	}
	id, nested, name := callContainerID(call)
	if name == "" {
		return nil
	}
	if err := validateContainerID(id); err != nil {
		return fmt.Errorf("'%s.container_id' is invalid: %w", name, err)
	}
	if nested && id.Parent == nil {
		return fmt.Errorf("Expecting '%s.container_id.parent' to be present", name)
	}
	switch call.GetType() {
	case agentv1.Call_LAUNCH_NESTED_CONTAINER:
		l := call.GetLaunchNestedContainer()
		return validateLaunch(name, l.GetCommand(), l.GetContainer())
	case agentv1.Call_LAUNCH_NESTED_CONTAINER_SESSION:
		l := call.GetLaunchNestedContainerSession()
		return validateLaunch(name, l.GetCommand(), l.GetContainer())
	case agentv1.Call_LAUNCH_CONTAINER:
		l := call.GetLaunchContainer()
		if err := resources.ValidateAll(l.GetResources()); err != nil {
			return fmt.Errorf("Invalid resources: %w", err)
		}
		if err := validateShares(l); err != nil {
			return err
		}
		return validateLaunch(name, l.GetCommand(), l.GetContainer())
	}
	return nil
}

// validateLaunch is about what a container runs, and in what.
func validateLaunch(name string, command *mesosv1.CommandInfo, container *mesosv1.ContainerInfo) error {
	for _, v := range command.GetEnvironment().GetVariables() {
		secret := v.GetType() == mesosv1.Environment_Variable_SECRET
		switch {
		case secret && (v.Secret == nil || v.Value != nil):
			return fmt.Errorf("'%s.command' is invalid: environment variable '%s' of type 'SECRET' must have a secret and no value", name, clip(v.GetName()))
		case !secret && (v.Value == nil || v.Secret != nil):
			return fmt.Errorf("'%s.command' is invalid: environment variable '%s' of type 'VALUE' must have a value and no secret", name, clip(v.GetName()))
		}
	}
	for _, u := range command.GetUris() {
		if u.GetValue() == "" {
			return fmt.Errorf("'%s.command' is invalid: a URI is empty", name)
		}
	}
	if s := container.GetTtyInfo().GetWindowSize(); s != nil && !validWindow(s) {
		return fmt.Errorf("'%s.container' is invalid: a terminal has at most %d rows and columns", name, maxWindow)
	}
	for _, v := range container.GetVolumes() {
		if v.GetContainerPath() == "" {
			return fmt.Errorf("'%s.container' is invalid: a volume has no 'container_path'", name)
		}
	}
	return nil
}

// maxWindow is the greatest number of rows or columns that a terminal can be told.
const maxWindow = 1<<16 - 1

func validWindow(s *mesosv1.TTYInfo_WindowSize) bool {
	return s.GetRows() <= maxWindow && s.GetColumns() <= maxWindow
}

// validateShares is about what a container gets of its own, by its level: resources are for those without parent, and
// for those directly in one that share no cgroups with it.
func validateShares(l *agentv1.Call_LaunchContainer) error {
	const where = "'launch_container.container.linux_info.share_cgroups'"
	level := 0
	for p := l.GetContainerId().GetParent(); p != nil; p = p.GetParent() {
		level++
	}
	info := l.GetContainer().GetLinuxInfo()
	shares := info == nil || info.GetShareCgroups()
	limited := len(l.GetResources()) > 0 || len(l.GetLimits()) > 0
	switch {
	case level == 0 && info != nil && info.ShareCgroups != nil && info.GetShareCgroups():
		return fmt.Errorf("%s must not be true for a container without parent", where)
	case level > 1 && limited:
		return errors.New("Resources and limits may only be specified for containers without parent and those directly in one")
	case level > 1 && !shares:
		return fmt.Errorf("%s must be true for containers nested at the second level or deeper", where)
	case level == 1 && limited && shares:
		return fmt.Errorf("Resources and limits may only be specified for a nested container when %s is false", where)
	}
	for _, r := range l.GetResources() {
		switch {
		case r.GetDisk().GetPersistence() != nil:
			return fmt.Errorf("'launch_container.resources' is invalid: %q is a persistent volume", clip(r.GetName()))
		case r.Revocable != nil:
			return fmt.Errorf("'launch_container.resources' is invalid: %q is revocable", clip(r.GetName()))
		case len(r.GetReservations()) > 0 || r.Reservation != nil || r.GetRole() != "" && r.GetRole() != "*":
			return fmt.Errorf("'launch_container.resources' is invalid: %q is reserved", clip(r.GetName()))
		}
	}
	for name, limit := range l.GetLimits() {
		if v := limit.GetValue(); !(v >= 0) { // nor NaN
			return fmt.Errorf("'launch_container.limits' is invalid: %q is %v", clip(name), v)
		}
	}
	return nil
}

// validateInput is about what a client feeds a container, after the record that names it.
func validateInput(call *agentv1.Call_AttachContainerInput) error {
	m := call.GetProcessIo()
	switch {
	case call.GetType() != agentv1.Call_AttachContainerInput_PROCESS_IO || m == nil:
		return errors.New("Expecting 'attach_container_input.process_io' to be present")
	case m.GetType() == agentv1.ProcessIO_UNKNOWN:
		return errors.New("'process_io.type' is unknown")
	case m.GetType() == agentv1.ProcessIO_DATA && m.Data == nil:
		return errors.New("Expecting 'process_io.data' to be present")
	case m.GetType() == agentv1.ProcessIO_DATA && m.GetData().GetType() != agentv1.ProcessIO_Data_STDIN:
		return errors.New("Expecting 'process_io.data.type' to be 'STDIN'")
	case m.GetType() == agentv1.ProcessIO_DATA:
		return nil
	case m.Control == nil:
		return errors.New("Expecting 'process_io.control' to be present")
	case m.GetControl().GetType() == agentv1.ProcessIO_Control_UNKNOWN:
		return errors.New("'process_io.control.type' is unknown")
	case m.GetControl().GetType() == agentv1.ProcessIO_Control_HEARTBEAT && m.GetControl().Heartbeat == nil:
		return errors.New("Expecting 'process_io.control.heartbeat' to be present")
	case m.GetControl().GetType() != agentv1.ProcessIO_Control_TTY_INFO:
		return nil
	case m.GetControl().GetTtyInfo().GetWindowSize() == nil:
		return errors.New("Expecting 'process_io.control.tty_info.window_size' to be present")
	case !validWindow(m.GetControl().GetTtyInfo().GetWindowSize()):
		return fmt.Errorf("'process_io.control.tty_info' is invalid: a terminal has at most %d rows and columns", maxWindow)
	}
	return nil
}

// callContainerID returns the container that a call is about, and whether it must be a nested one. name
// is that of the call's message, empty when the call is not about a container.
func callContainerID(call *agentv1.Call) (id *mesosv1.ContainerID, nested bool, name string) {
	switch call.GetType() {
	case agentv1.Call_LAUNCH_NESTED_CONTAINER:
		return call.GetLaunchNestedContainer().GetContainerId(), true, "launch_nested_container"
	case agentv1.Call_WAIT_NESTED_CONTAINER:
		return call.GetWaitNestedContainer().GetContainerId(), true, "wait_nested_container"
	case agentv1.Call_KILL_NESTED_CONTAINER:
		return call.GetKillNestedContainer().GetContainerId(), true, "kill_nested_container"
	case agentv1.Call_REMOVE_NESTED_CONTAINER:
		return call.GetRemoveNestedContainer().GetContainerId(), true, "remove_nested_container"
	case agentv1.Call_LAUNCH_NESTED_CONTAINER_SESSION:
		return call.GetLaunchNestedContainerSession().GetContainerId(), true, "launch_nested_container_session"
	case agentv1.Call_ATTACH_CONTAINER_OUTPUT:
		return call.GetAttachContainerOutput().GetContainerId(), false, "attach_container_output"
	case agentv1.Call_LAUNCH_CONTAINER:
		return call.GetLaunchContainer().GetContainerId(), false, "launch_container"
	case agentv1.Call_WAIT_CONTAINER:
		return call.GetWaitContainer().GetContainerId(), false, "wait_container"
	case agentv1.Call_KILL_CONTAINER:
		return call.GetKillContainer().GetContainerId(), false, "kill_container"
	case agentv1.Call_REMOVE_CONTAINER:
		return call.GetRemoveContainer().GetContainerId(), false, "remove_container"
	}
	return nil, false, ""
}

// Bounds of container ids. Ids become names of folders and cgroups.
const (
	maxContainerIDLength = 242
	maxContainerNesting  = 32
)

func validateContainerID(id *mesosv1.ContainerID) error {
	for level := 0; id != nil; id, level = id.Parent, level+1 {
		v := id.GetValue()
		switch {
		case level >= maxContainerNesting:
			return fmt.Errorf("more than %d levels of nesting", maxContainerNesting)
		case v == "":
			return errors.New("'ContainerID.value' must be non-empty")
		case len(v) > maxContainerIDLength:
			return fmt.Errorf("'ContainerID.value' must be at most %d characters", maxContainerIDLength)
		case strings.ContainsFunc(v, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '/' || c == '\\' || c == '.' }):
			return errors.New("'ContainerID.value' contains an invalid character")
		}
	}
	return nil
}
