package containerizer

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func TestASecretThatAVolumeRefersToIsDisclosedAndNotKept(t *testing.T) {
	volume := func(s *mesosv1.Secret) *mesosv1.Volume {
		return &mesosv1.Volume{Mode: mesosv1.Volume_RO.Enum(), ContainerPath: proto.String("/keys"),
			Source: &mesosv1.Volume_Source{Type: mesosv1.Volume_Source_SECRET.Enum(), Secret: s}}
	}
	given := &mesosv1.Secret{Type: mesosv1.Secret_VALUE.Enum(), Value: &mesosv1.Secret_Value{Data: []byte("given")}}
	referred := &mesosv1.Secret{Type: mesosv1.Secret_REFERENCE.Enum(), Reference: &mesosv1.Secret_Reference{Name: proto.String("db")}}
	c := &Containerizer{cfg: Config{Secret: func(_ context.Context, s *mesosv1.Secret) ([]byte, error) {
		return []byte("resolved " + s.GetReference().GetName()), nil
	}}}
	ct := &container{spec: &containerv1.Container{ContainerInfo: &mesosv1.ContainerInfo{Volumes: []*mesosv1.Volume{volume(given), volume(referred)}}}}
	before := proto.CloneOf(ct.spec)
	if err := c.resolveSecrets(t.Context(), ct); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range ct.disclosed(ct.spec).GetContainerInfo().GetVolumes() {
		got = append(got, string(v.GetSource().GetSecret().GetValue().GetData()))
	}
	if text := strings.Join(got, ", "); text != "given, resolved db" {
		t.Errorf("disclosed secrets: got %q, want the one given and the one resolved", text)
	}
	if !proto.Equal(ct.spec, before) {
		t.Errorf("the container itself is %v now, want it to keep the reference", ct.spec)
	}

	c.cfg.Secret = nil
	if err := c.resolveSecrets(t.Context(), ct); err == nil || !strings.Contains(err.Error(), "volume /keys: secret db") {
		t.Errorf("without a resolver: got %v, want the volume and the secret named", err)
	}
	plain := &container{spec: &containerv1.Container{}}
	if err := c.resolveSecrets(t.Context(), plain); err != nil || plain.disclosed(plain.spec) != plain.spec {
		t.Errorf("a container without secrets: %v, or it was copied", err)
	}
}
