package namespaces_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/isolators/namespaces"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

func TestWhichNamespacesAContainerGets(t *testing.T) {
	for _, test := range []struct {
		name, config string
		linux        *mesosv1.LinuxInfo
		parent       string
		class        containerv1.Container_Class
		rootfs       string
		want         string // namespaces and mounts, or the error's text
	}{
		{"default", `{}`, nil, "", 0, "", "PID IPC"},
		{"shares pid", `{}`, &mesosv1.LinuxInfo{SharePidNamespace: proto.Bool(true)}, "", 0, "", "IPC"},
		{"may not share pid", `{"disallow_sharing_agent_pid_namespace":true}`, &mesosv1.LinuxInfo{SharePidNamespace: proto.Bool(true)}, "", 0, "", "not allowed"},
		{"shares ipc", `{}`, &mesosv1.LinuxInfo{IpcMode: mesosv1.LinuxInfo_SHARE_PARENT.Enum()}, "", 0, "", "PID"},
		{"may not share ipc", `{"disallow_sharing_agent_ipc_namespace":true}`, &mesosv1.LinuxInfo{IpcMode: mesosv1.LinuxInfo_SHARE_PARENT.Enum()}, "", 0, "", "not allowed"},
		{"own shm", `{}`, &mesosv1.LinuxInfo{IpcMode: mesosv1.LinuxInfo_PRIVATE.Enum(), ShmSize: proto.Uint32(16)}, "", 0, "", "PID IPC /dev/shm size=16777216"},
		{"default shm", `{"default_shm_size":1048576}`, nil, "", 0, "", "PID IPC /dev/shm size=1048576"},
		{"shm without ipc", `{}`, &mesosv1.LinuxInfo{IpcMode: mesosv1.LinuxInfo_SHARE_PARENT.Enum(), ShmSize: proto.Uint32(16)}, "", 0, "", "PRIVATE"},
		{"nested", `{}`, nil, "parent", 0, "", "PID"},
		{"debug", `{}`, nil, "parent", containerv1.Container_DEBUG, "", ""},
		{"private without image", `{}`, &mesosv1.LinuxInfo{IpcMode: mesosv1.LinuxInfo_PRIVATE.Enum()}, "", 0, "", "PID IPC /dev/shm mode=1777"},
		{"private with image", `{}`, &mesosv1.LinuxInfo{IpcMode: mesosv1.LinuxInfo_PRIVATE.Enum()}, "", 0, "/r", "PID IPC"},
		{"shares ipc with image", `{}`, &mesosv1.LinuxInfo{IpcMode: mesosv1.LinuxInfo_SHARE_PARENT.Enum()}, "", 0, "/r", "PID /dev/shm rw"},
		{"nested shares pid", `{}`, &mesosv1.LinuxInfo{SharePidNamespace: proto.Bool(true)}, "parent", 0, "", ""},
		{"nested shares pid where the agent's may not be", `{"disallow_sharing_agent_pid_namespace":true}`, &mesosv1.LinuxInfo{SharePidNamespace: proto.Bool(true)}, "parent", 0, "", ""},
		{"nested with image", `{}`, &mesosv1.LinuxInfo{IpcMode: mesosv1.LinuxInfo_SHARE_PARENT.Enum()}, "parent", 0, "/r", "PID"},
		{"nested private", `{}`, &mesosv1.LinuxInfo{IpcMode: mesosv1.LinuxInfo_PRIVATE.Enum(), ShmSize: proto.Uint32(1)}, "parent", 0, "", "PID IPC /dev/shm size=1048576"},
		{"off", `{"pid":false,"ipc":false}`, nil, "", 0, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := moduletest.Start(t, namespaces.New(), test.config)
			info := &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: test.linux}
			r, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{
				OperationId: "op", Container: &containerv1.Container{Id: "c", ParentId: test.parent, Class: test.class, ContainerInfo: info, Rootfs: test.rootfs},
			})
			var got []string
			for _, n := range r.GetProposal().GetNamespaces() {
				got = append(got, n.GetType().String())
			}
			for _, m := range r.GetProposal().GetMounts() {
				got = append(got, m.GetDestination(), m.GetOptions()[len(m.GetOptions())-1])
			}
			text := strings.Join(got, " ")
			if err != nil {
				text = err.Error()
				if !strings.Contains(text, test.want) || test.want == "" {
					t.Errorf("Prepare: %v, want %q", err, test.want)
				}
				return
			}
			if text != test.want {
				t.Errorf("Prepare proposed %q, want %q", text, test.want)
			}
		})
	}
}

func TestCleanupOfAnUnknownContainerSucceeds(t *testing.T) {
	c := moduletest.Start(t, namespaces.New(), `{}`)
	if _, err := c.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{}); err != nil {
		t.Errorf("Cleanup of an unknown container: %v, want success", err)
	}
}
