package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The size of a volume whose claim asks for none.
const usual = 1 << 30

// driver serves all three services. Its state is in the shared folder: any node's process may serve the controller.
type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	name, node, data string
	changes          sync.Mutex
}

// volume is the folder of a volume.
func (d *driver) volume(id string) (string, error) {
	if id == "" || id != filepath.Base(id) {
		return "", status.Errorf(codes.InvalidArgument, "volume %q", id)
	}
	return filepath.Join(d.data, "volumes", id), nil
}

// existing is the folder of a volume that must exist.
func (d *driver) existing(id string) (string, error) {
	folder, err := d.volume(id)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(folder); err != nil {
		return "", status.Errorf(codes.NotFound, "no volume %s", id)
	}
	return folder, nil
}

// refuse reports an order of calls that Kubernetes must never produce.
func (d *driver) refuse(format string, arguments ...any) error {
	message := fmt.Sprintf(format, arguments...)
	log.Printf("violation: %s", message)
	file, err := os.OpenFile(filepath.Join(d.data, "violations"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		fmt.Fprintln(file, message)
		err = file.Close()
	}
	if err != nil {
		log.Printf("%s", err)
	}
	return status.Error(codes.FailedPrecondition, message)
}

// attached is the node that a volume is attached to, or empty.
func attached(folder string) (string, error) {
	node, err := os.ReadFile(filepath.Join(folder, "attached"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(node), err
}

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "1"}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

func (d *driver) GetPluginCapabilities(
	context.Context, *csi.GetPluginCapabilitiesRequest,
) (*csi.GetPluginCapabilitiesResponse, error) {
	service := &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}
	expansion := &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE}
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{
		{Type: &csi.PluginCapability_Service_{Service: service}},
		{Type: &csi.PluginCapability_VolumeExpansion_{VolumeExpansion: expansion}},
	}}, nil
}

func (d *driver) ControllerGetCapabilities(
	context.Context, *csi.ControllerGetCapabilitiesRequest,
) (*csi.ControllerGetCapabilitiesResponse, error) {
	answer := &csi.ControllerGetCapabilitiesResponse{}
	for _, kind := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_MODIFY_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		rpc := &csi.ControllerServiceCapability_RPC{Type: kind}
		answer.Capabilities = append(answer.Capabilities,
			&csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: rpc}})
	}
	return answer, nil
}

func (d *driver) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	d.changes.Lock()
	defer d.changes.Unlock()
	folder, err := d.volume(request.Name)
	if err != nil {
		return nil, err
	}
	size := request.GetCapacityRange().GetRequiredBytes()
	if size == 0 {
		size = usual
	}
	if err := os.MkdirAll(filepath.Join(folder, "home", "lost+found"), 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(filepath.Join(folder, "home", "lost+found"), 0o700); err != nil {
		return nil, err
	}
	if err := resize(folder, size); err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: request.Name, CapacityBytes: size}}, nil
}

func resize(folder string, size int64) error {
	return os.WriteFile(filepath.Join(folder, "size"), []byte(strconv.FormatInt(size, 10)), 0o600)
}

func (d *driver) DeleteVolume(_ context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	d.changes.Lock()
	defer d.changes.Unlock()
	folder, err := d.volume(request.VolumeId)
	if err != nil {
		return nil, err
	}
	node, err := attached(folder)
	if err != nil {
		return nil, err
	}
	if node != "" {
		return nil, d.refuse("delete %s: it is attached to %s", request.VolumeId, node)
	}
	if err := os.RemoveAll(folder); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (d *driver) ControllerPublishVolume(
	_ context.Context, request *csi.ControllerPublishVolumeRequest,
) (*csi.ControllerPublishVolumeResponse, error) {
	d.changes.Lock()
	defer d.changes.Unlock()
	folder, err := d.existing(request.VolumeId)
	if err != nil {
		return nil, err
	}
	node, err := attached(folder)
	if err != nil {
		return nil, err
	}
	if node != "" && node != request.NodeId {
		return nil, status.Errorf(codes.FailedPrecondition, "%s is attached to %s", request.VolumeId, node)
	}
	if err := os.WriteFile(filepath.Join(folder, "attached"), []byte(request.NodeId), 0o600); err != nil {
		return nil, err
	}
	return &csi.ControllerPublishVolumeResponse{}, nil
}

// ControllerUnpublishVolume fails, as the API of a cloud may, while the file refuse-detach exists in the shared folder.
func (d *driver) ControllerUnpublishVolume(
	_ context.Context, request *csi.ControllerUnpublishVolumeRequest,
) (*csi.ControllerUnpublishVolumeResponse, error) {
	d.changes.Lock()
	defer d.changes.Unlock()
	folder, err := d.volume(request.VolumeId)
	if err != nil {
		return nil, err
	}
	if reason, err := os.ReadFile(filepath.Join(d.data, "refuse-detach")); err == nil {
		return nil, status.Error(codes.Unavailable, strings.TrimSpace(string(reason)))
	}
	node, err := attached(folder)
	if err != nil || node == "" || request.NodeId != "" && node != request.NodeId {
		return &csi.ControllerUnpublishVolumeResponse{}, err
	}
	if _, err := os.Stat(filepath.Join(folder, "staged-"+node)); err == nil {
		return nil, d.refuse("detach %s: %s still mounts it", request.VolumeId, node)
	}
	if err := os.Remove(filepath.Join(folder, "attached")); err != nil {
		return nil, err
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

func (d *driver) ValidateVolumeCapabilities(
	_ context.Context, request *csi.ValidateVolumeCapabilitiesRequest,
) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if _, err := d.existing(request.VolumeId); err != nil {
		return nil, err
	}
	confirmed := &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: request.VolumeCapabilities}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: confirmed}, nil
}

func (d *driver) ControllerExpandVolume(
	_ context.Context, request *csi.ControllerExpandVolumeRequest,
) (*csi.ControllerExpandVolumeResponse, error) {
	folder, err := d.existing(request.VolumeId)
	if err != nil {
		return nil, err
	}
	size := request.GetCapacityRange().GetRequiredBytes()
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: size, NodeExpansionRequired: true}, resize(folder, size)
}

// ControllerModifyVolume accepts every VolumeAttributesClass: its parameters mean nothing here.
func (d *driver) ControllerModifyVolume(
	_ context.Context, request *csi.ControllerModifyVolumeRequest,
) (*csi.ControllerModifyVolumeResponse, error) {
	_, err := d.existing(request.VolumeId)
	return &csi.ControllerModifyVolumeResponse{}, err
}
