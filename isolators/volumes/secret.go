package volumes

import (
	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// maxSecret bounds a secret: keys and passwords are far smaller, and each byte stays in memory that is never swapped.
const maxSecret = 1 << 20

// secret proposes an empty place for a secret, which Isolate covers with the secret itself. A container for which that
// failed is not started. Secrets are read-only whatever the volume's mode says.
func (i *Isolator) secret(cfg *Config, c *containerv1.Container, v *mesosv1.Volume) (*containerv1.Mount, error) {
	at, err := place(c, v)
	if err != nil {
		return nil, err
	}
	if !cfg.Secrets {
		return nil, module.FailedPrecondition("secret at %s: this machine gives containers no secrets as files (secrets)", v.GetContainerPath())
	}
	if _, err := secretData(v); err != nil {
		return nil, err
	}
	if err := makePlace(c, v, at, false); err != nil {
		return nil, err
	}
	return &containerv1.Mount{Destination: at, Source: "/dev/null", Type: "bind", Options: []string{"bind", "ro"}}, nil
}

// secretData is the secret's value.
func secretData(v *mesosv1.Volume) ([]byte, error) {
	s := v.GetSource().GetSecret()
	switch {
	case s.GetType() == mesosv1.Secret_REFERENCE:
		return nil, module.FailedPrecondition("secret at %s: the reference %q was not resolved; does the agent have a secret resolver?", v.GetContainerPath(), s.GetReference().GetName())
	case s.GetType() != mesosv1.Secret_VALUE || s.GetValue() == nil:
		return nil, module.InvalidArgument("secret at %s: neither value nor reference", v.GetContainerPath())
	case len(s.GetValue().GetData()) > maxSecret:
		return nil, module.InvalidArgument("secret at %s: got %d bytes, want at most %d", v.GetContainerPath(), len(s.GetValue().GetData()), maxSecret)
	}
	return s.GetValue().GetData(), nil
}
