package containerizer

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// An isolator makes files of secrets, and is shown them with their values. What a reference leads to is known to a
// launch alone: the container itself, which is checkpointed, keeps the reference.

// resolveSecrets finds out what the secrets mean that a container refers to and wants as files.
func (c *Containerizer) resolveSecrets(ctx context.Context, ct *container) error {
	for n, v := range ct.spec.GetContainerInfo().GetVolumes() {
		s := v.GetSource().GetSecret()
		if v.GetSource().GetType() != mesosv1.Volume_Source_SECRET || s.GetType() != mesosv1.Secret_REFERENCE {
			continue
		}
		value, err := c.secret(ctx, s)
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.GetContainerPath(), err)
		}
		if ct.secretVolumes == nil {
			ct.secretVolumes = map[int][]byte{}
		}
		ct.secretVolumes[n] = []byte(value)
	}
	return nil
}

// disclosed is a container's description with the values of the secrets that it wants as files; spec itself where it
// refers to none, and a copy otherwise.
func (ct *container) disclosed(spec *containerv1.Container) *containerv1.Container {
	if len(ct.secretVolumes) == 0 {
		return spec
	}
	spec = proto.CloneOf(spec)
	for n, value := range ct.secretVolumes {
		spec.GetContainerInfo().GetVolumes()[n].GetSource().Secret = &mesosv1.Secret{
			Type: mesosv1.Secret_VALUE.Enum(), Value: &mesosv1.Secret_Value{Data: value},
		}
	}
	return spec
}
