package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// A registry with users and an authority of its own gives images to who trusts it and has a password: the agent's, or the
// task's own, in its image's configuration.
func TestAPrivateRegistryGivesToWhoItKnows(t *testing.T) {
	needRoot(t)
	checked := newCheckedImage(t)
	registry := startDistribution(t)
	image, _ := registry.push(t, "private/app:1", checked.small(t, dockerForm, "private"))
	other, _ := registry.push(t, "private/other:1", checked.small(t, ociForm, "other"))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	run := func(composition string) (*cluster.Cluster, *cluster.Framework) {
		t.Helper()
		c := start(t, cluster.Options{Composition: composition})
		f, err := cluster.Subscribe(ctx, c.Master, "images", "*")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.Disconnect)
		return c, f
	}
	stranger, f := run("")
	if said := failed(ctx, t, f, map[string]string{"untrusting": image})["untrusting"]; !strings.Contains(said, "the registry cannot be trusted") || !strings.Contains(said, "unknown authority") {
		t.Errorf("without the authority: the reason is %q, want that the registry cannot be trusted", said)
	}
	wantNoTraceOfImages(t, stranger)

	nobody, f := run(fmt.Sprintf("agent {\n  registry_ca = %q\n}\n", registry.ca))
	if said := failed(ctx, t, f, map[string]string{"nobody": image})["nobody"]; !strings.Contains(said, "the registry refuses: unauthorized") {
		t.Errorf("without a password: the reason is %q, want the registry's refusal", said)
	}
	// The tasks bring their own.
	o, err := f.Offer(ctx, 1, 512)
	if err != nil {
		t.Fatal(err)
	}
	as := func(id, image, password string) *mesosv1.TaskInfo {
		auth := base64.StdEncoding.EncodeToString([]byte(registry.user + ":" + password))
		task := imageTask(o, id, image, nil)
		task.Container.Mesos.Image.Docker.Config = &mesosv1.Secret{
			Type: mesosv1.Secret_VALUE.Enum(), Value: &mesosv1.Secret_Value{Data: fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, registry.host, auth)},
		}
		return task
	}
	if err := f.Launch(ctx, o, as("right", image, registry.password), as("wrong", other, "open barley")); err != nil {
		t.Fatal(err)
	}
	got, err := f.State(ctx, []string{"right", "wrong"}, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED)
	if err != nil {
		t.Fatal(err)
	}
	if s := got["right"].Status; s.GetState() != mesosv1.TaskState_TASK_FINISHED || stdoutOf(t, nobody, "right") != verdict {
		t.Errorf("with the right password: %s %s, it said %q", s.GetState(), s.GetMessage(), stdoutOf(t, nobody, "right"))
	}
	if s := got["wrong"].Status; s.GetState() != mesosv1.TaskState_TASK_FAILED || !strings.Contains(s.GetMessage(), "the registry refuses: unauthorized") || strings.Contains(s.GetMessage(), "barley") {
		t.Errorf("with a wrong password: %s %q, want the registry's refusal without the password", s.GetState(), s.GetMessage())
	}
	if strings.Contains(nobody.Logs(), "barley") || strings.Contains(nobody.Logs(), registry.password) {
		t.Error("a password is in the logs")
	}
	prune(t, nobody)
	wantNoTraceOfImages(t, nobody)
}
