// Memory for weights: large pieces that are cut up in order, in pages as large as the system gives. A weight that
// follows another in use follows it in memory, and reading half a gigabyte touches hundreds of pages instead of 130,000.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace regear {

class Arena {
public:
    // Uninitialised; freed with the last of the piece's users.
    std::shared_ptr<void> take(std::size_t bytes) {
        bytes = (bytes + kLine - 1) / kLine * kLine;
        if (!piece_ || piece_->size - used_ < bytes) {
            piece_ = std::make_shared<Piece>(std::max(bytes, kPiece));
            used_ = 0;
        }
        std::shared_ptr<void> found(piece_, static_cast<char*>(piece_->at) + used_);
        used_ += bytes;
        return found;
    }

private:
    static constexpr std::size_t kPiece = std::size_t{32} << 20, kPage = std::size_t{2} << 20, kLine = 64;

    struct Piece {
        void* at;
        std::size_t size;

        explicit Piece(std::size_t bytes) : size((bytes + kPage - 1) / kPage * kPage) {
            at = ::operator new(size, std::align_val_t{kPage});
#if defined(__linux__)
            madvise(at, size, MADV_HUGEPAGE);  // without it everything is as right, and slower
#endif
        }
        Piece(const Piece&) = delete;
        ~Piece() { ::operator delete(at, std::align_val_t{kPage}); }
    };

    std::shared_ptr<Piece> piece_;
    std::size_t used_ = 0;
};

}  // namespace regear
