// CUDA's device for torch's CPU build: memory of its own that no CPU tensor may be mixed with, and
// every operation done by the processor. So lines for a GPU run, and refuse what a GPU refuses.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <cstring>

namespace {

using at::Tensor;
using c10::IntArrayRef;
template <typename T>
using Maybe = std::optional<T>;

const c10::Device GPU(c10::DeviceType::CUDA, 0);
const c10::DispatchKeySet KEYS(c10::DispatchKey::CUDA);

c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, GPU); }

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* data = c10::alloc_cpu(n);
    return {data, data, &c10::free_cpu, GPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
};
Memory memory;
REGISTER_ALLOCATOR(c10::DeviceType::CUDA, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return GPU.type(); }
  c10::Device exchangeDevice(c10::Device) const override { return GPU; }
  c10::Device getDevice() const override { return GPU; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int = 0) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
c10::impl::DeviceGuardImplRegistrar guard(GPU.type(), new Guard());

// torch asks the class of this name whether there is a GPU
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  at::Device getDeviceFromPtr(void*) const override { return GPU; }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    return c10::GetAllocator(c10::DeviceType::CPU);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex = -1) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex = -1) const override {
    return at::detail::createCPUGenerator();
  }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks);

Tensor empty(IntArrayRef size, Maybe<c10::ScalarType> dtype, Maybe<c10::Layout>, Maybe<c10::Device>,
             Maybe<bool>, Maybe<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, Maybe<c10::ScalarType> dtype,
                     Maybe<c10::Layout>, Maybe<c10::Device>, Maybe<bool>) {
  const auto type = c10::dtype_or_default(dtype);
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, type);
}

Tensor as_cpu(const Tensor& t) {
  if (t.is_cpu()) return t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), at::dtype(t.dtype()));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  as_cpu(self).copy_(as_cpu(source));
  return self;
}

Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  as_cpu(to).copy_(as_cpu(self));
  return to;
}

const Tensor& resize_(const Tensor& self, IntArrayRef size, Maybe<c10::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  auto* held = impl->unsafe_storage().unsafeGetStorageImpl();
  const size_t bytes = (impl->storage_offset() + c10::multiply_integers(size)) * self.element_size();
  if (bytes > held->nbytes()) {
    auto more = memory.allocate(bytes);
    if (held->nbytes() > 0) std::memcpy(more.get(), held->data(), held->nbytes());
    held->set_data_ptr_noswap(std::move(more));
    held->set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(size);
  if (format) impl->empty_tensor_restride(*format);
  return self;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  if (self.sizes() != to.sizes()) to.resize_(self.sizes());
  return copy_from(self, to, false);
}

Tensor& set_storage(Tensor& self, c10::Storage source, int64_t offset, IntArrayRef size,
                    IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  if (stride.empty()) impl->set_sizes_contiguous(size);
  else impl->set_sizes_and_strides(size, stride);
  return self;
}

Tensor& set_source(Tensor& self, c10::Storage source) {
  const int64_t n = source.nbytes() / self.element_size();
  return set_storage(self, std::move(source), 0, {n}, {1});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(),
                     source.strides());
}

Tensor strided_view(const Tensor& self, IntArrayRef size, IntArrayRef stride,
                    Maybe<int64_t> offset) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
  view.unsafeGetTensorImpl()->set_storage_offset(offset.value_or(self.storage_offset()));
  view.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return view;
}

// with the strides that the same view has on the processor
Tensor like(const Tensor& self, const Tensor& seen) {
  return strided_view(self, seen.sizes(), seen.strides(), self.storage_offset());
}

Tensor view(const Tensor& self, IntArrayRef size) { return like(self, as_cpu(self).view(size)); }

Tensor unfold(const Tensor& self, int64_t axis, int64_t size, int64_t step) {
  return like(self, as_cpu(self).unfold(axis, size, step));
}

Tensor reshape_alias(const Tensor& self, IntArrayRef size, IntArrayRef stride) {
  return strided_view(self, size, stride, self.storage_offset());
}

void by_processor(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack);
}

// the processor has these in fp32 alone
Tensor avg_pool3d(const Tensor& self, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                  bool ceil, bool padded, Maybe<int64_t> divisor) {
  const auto wide = as_cpu(self).to(at::kFloat);
  return at::avg_pool3d(wide, kernel, stride, padding, ceil, padded, divisor).to(self.options());
}

Tensor avg_pool3d_backward(const Tensor& grad, const Tensor& self, IntArrayRef kernel,
                           IntArrayRef stride, IntArrayRef padding, bool ceil, bool padded,
                           Maybe<int64_t> divisor) {
  const auto wide = as_cpu(self).to(at::kFloat), wide_grad = as_cpu(grad).to(at::kFloat);
  return at::avg_pool3d_backward(wide_grad, wide, kernel, stride, padding, ceil, padded, divisor)
      .to(self.options());
}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_processor>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize_);
  m.impl("set_.source_Storage", set_source);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("as_strided", strided_view);
  m.impl("view", view);
  m.impl("unfold", unfold);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("avg_pool3d", avg_pool3d);
  m.impl("avg_pool3d_backward", avg_pool3d_backward);
  // these choose a kernel by the device themselves
  m.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&by_processor>());
  m.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&by_processor>());
}

}  // namespace
